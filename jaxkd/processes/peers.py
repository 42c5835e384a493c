"""How processes notice one another's end, and what they do then.

Process 0 has a connection with each of the others, and they have one with it. Each end
says one thing before it closes: "bye", or why it fails. A connection that closes
without a word was its process's end: the system closes those of a process that is
killed, and gives up those with a host that does not answer.

jax's own service would end the processes too, but later, and by `abort`: at once when
process 0 is gone, which runs it, and else when heartbeats have been missing for long.
"""

import atexit
import contextlib
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import jax

from jaxkd.processes.environment import Place

LOST = 75  # the exit code; EX_TEMPFAIL in sysexits.h
HEARTBEAT = 45  # seconds until jax's own service gives a silent process up
GRACE = 20  # seconds for what is being written when another process is lost
LEAVING = 600  # seconds that a process which is done waits for the others
BYE = "bye"
TOKEN = 16  # characters that only the processes of this run know
RESUME = (
    "What was saved is whole: the run resumes from its last checkpoint, with any "
    "number of processes."
)


def client() -> Any:
    """The connection with jax's coordinator, which has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


class _Watch(NamedTuple):
    """What the watching thread and the end of the program share."""

    here: Place
    links: dict[int, socket.socket]
    words: subprocess.Popen | None
    lost: threading.Event  # another process is; this one is about to end
    failed: threading.Event  # this process has, and said so: what others do is no news
    left: threading.Event  # all the others have closed their ends


def connect(here: Place, port: int) -> dict[int, socket.socket]:
    """Connects process 0 with each of the others. They meet through jax's service."""
    service, patience = client(), 30
    try:
        if here.process == 0:
            return _accept(here, port, patience)
        number, token = service.blocking_key_value_get(
            "jaxkd/watch", 1000 * patience
        ).split()
        host = here.address.rpartition(":")[0].strip("[]")
        link = socket.create_connection((host, int(number)), timeout=patience)
        link.sendall(f"{token}{here.process:08d}".encode())
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{here}: all of them reach {here.address}, but not the second port at "
            f"which process 0 listens: {error}; open one in its firewall, and name it "
            "by start(port=...)"
        ) from error
    return {0: _kept_alive(link)}


def _accept(here: Place, port: int, patience: float) -> dict[int, socket.socket]:
    """Process 0's side: waits until all the others are connected."""
    token = secrets.token_hex(TOKEN // 2)
    links: dict[int, socket.socket] = {}
    until = time.monotonic() + patience
    with _server(port, here.processes) as server:
        client().key_value_set("jaxkd/watch", f"{server.getsockname()[1]} {token}")
        while len(links) < here.processes - 1:
            missing = sorted({*range(1, here.processes)} - {*links})
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                link, _ = server.accept()
            except TimeoutError:
                raise OSError(f"processes {missing} did not connect") from None
            hello = _hello(link)
            number = hello.removeprefix(token)
            if hello.startswith(token) and int(number) in missing:
                links[int(number)] = _kept_alive(link)
            else:
                link.close()
    return links


def _hello(link: socket.socket) -> str:
    """What a new connection says first: the token and its process's number."""
    link.settimeout(5)
    with contextlib.suppress(OSError, ValueError):  # a stranger's
        return link.recv(TOKEN + 8, socket.MSG_WAITALL).decode()
    return ""


def watch(
    here: Place, links: dict[int, socket.socket], words: subprocess.Popen | None
) -> None:
    """Ends this process when another one is lost, and tells them when this one ends.

    Args:
      here: which process this is.
      links: from `connect`.
      words: from `last_words`.
    """
    _say(
        words,
        f"{here} ended without a word: it was killed, or the runtime ended it because "
        "another one was gone (process 0 coordinates them) or did not answer. "
        f"{RESUME}",
    )
    events = (threading.Event() for _ in range(3))
    watch = _Watch(here, links, words, *events)
    thread = threading.Thread(target=_listen, args=(watch,), daemon=True)
    thread.start()
    atexit.register(_leave, watch, thread)  # runs before jax's own, an earlier one


def _server(port: int, backlog: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(
        ("", port), family=family, backlog=backlog, dualstack_ipv6=both
    )


def _kept_alive(link: socket.socket) -> socket.socket:
    """A host that is lost closes nothing: its silence ends the connection in 15 s."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"KEEPIDLE": 5, "KEEPINTVL": 3, "KEEPCNT": 3, "USER_TIMEOUT": 15_000}
    for name, value in wanted.items():
        if hasattr(socket, f"TCP_{name}"):  # not everywhere
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)
    return link


def _listen(watch: _Watch) -> None:
    """Waits for what the others say, and ends the process when one is lost."""
    heard = dict.fromkeys(watch.links, b"")
    with selectors.DefaultSelector() as selector:
        for index, link in watch.links.items():
            selector.register(link, selectors.EVENT_READ, index)
        while selector.get_map():
            for key, _ in selector.select():
                index, why = key.data, "its connection closed without a word"
                try:
                    more = watch.links[index].recv(4096)
                except OSError as error:
                    more, why = b"", str(error)
                heard[index] += more
                if more:
                    continue
                selector.unregister(watch.links[index])
                said = heard[index].decode(errors="replace")
                if said != BYE and not watch.failed.is_set():
                    gone = f"process {index} of {watch.here.processes} is gone ({why})"
                    _lost(watch, said or gone)
    watch.left.set()


def _lost(watch: _Watch, what: str) -> NoReturn:
    """Ends this process since another one is lost, once it has finished writing."""
    until = time.monotonic() + GRACE
    message = f"{what}; {watch.here} ends, too. {RESUME}"
    _say(watch.words, message)  # the runtime may end us at any moment
    watch.lost.set()
    if watch.here.process == 0:
        _tell(watch, what)
    # Where a collective has failed, the program is on its way out, and done with
    # its writing when it is there. Where it hangs, it never will be.
    threading.main_thread().join(GRACE)
    if watch.here.process == 0:
        _outlive(watch, until + 5)
    _exit(watch, LOST, message)


def _leave(watch: _Watch, thread: threading.Thread) -> None:
    """The end of the program, in any way but by a signal."""
    failed = getattr(sys, "last_value", None)
    if failed is not None:
        watch.lost.wait(2)  # it may be no more than the echo of another's end
    if watch.lost.is_set():
        thread.join()  # it ends the process
    if failed is not None:
        text = " ".join(f"{type(failed).__name__}: {failed}".split())[:500]
        watch.failed.set()
        _tell(watch, f"{watch.here} failed with {text}")
        if watch.here.process == 0:
            watch.left.wait(GRACE + 5)
        _exit(watch, 1)
    if watch.here.process == 0:
        watch.left.wait(LEAVING)
    _tell(watch, BYE)
    jax.distributed.shutdown()
    silence(watch.words)
    thread.join(5)  # it hears the last "bye"
    for link in watch.links.values():
        link.close()


def _tell(watch: _Watch, what: str) -> None:
    for link in watch.links.values():
        with contextlib.suppress(OSError):  # that one is gone already
            link.sendall(what.encode())
            link.shutdown(socket.SHUT_WR)


def _outlive(watch: _Watch, until: float) -> None:
    """Process 0 goes last: jax's runtime aborts the others the moment it is gone."""
    for link in watch.links.values():
        with contextlib.suppress(OSError):
            link.settimeout(max(until - time.monotonic(), 0.01))
            while link.recv(4096):
                pass


def _exit(watch: _Watch, code: int, message: str = "") -> NoReturn:
    """Ends the process at once: an orderly end would wait for those who are gone."""
    silence(watch.words)
    if message:
        print(f"jaxkd: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def last_words(words: str) -> subprocess.Popen | None:
    """A shell that says, when this process is gone, what was last told it to say.

    The runtime ends a process by `abort` when it loses its coordinator: nothing that
    runs inside can explain that.
    """
    if os.name != "posix":
        return None
    script = (
        "trap '' INT TERM HUP; while read -r line; do words=$line; done; "
        '[ "$words" = done ] || printf "jaxkd: %s\n" "$words" >&2'
    )
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    _say(shell, words)
    return shell


def _say(shell: subprocess.Popen | None, words: str) -> None:
    if shell is None or shell.stdin is None:
        return
    with contextlib.suppress(OSError, ValueError):
        shell.stdin.write(f"{words}\n".encode())
        shell.stdin.flush()


def silence(shell: subprocess.Popen | None) -> None:
    """Tells the shell that there is nothing to say, and waits for its end."""
    _say(shell, "done")
    if shell is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            shell.communicate(timeout=5)
