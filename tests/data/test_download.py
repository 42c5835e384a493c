"""Downloads, from a server on this machine."""

import functools
import http.server
import threading
import time

import pytest

from jaxkd.data import archives, download


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Short(Quiet):
    """Announces a byte more than it sends."""

    def send_header(self, keyword, value):
        if keyword == "Content-Length":
            value = str(int(value) + 1)
        super().send_header(keyword, value)


class Silent(Quiet):
    def do_GET(self):
        time.sleep(1.5)


def serve(folder, handler):
    handler = functools.partial(handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def remote(made_idx, request):
    """The small data set with the addresses of a server that has it."""
    server = serve(made_idx.folder, getattr(request, "param", Quiet))
    base = f"http://127.0.0.1:{server.server_port}"
    edition = made_idx.source.editions[0]
    moved = tuple(a._replace(url=f"{base}/{a.file}") for a in edition.archives)
    source = made_idx.source._replace(editions=(edition._replace(archives=moved),))
    yield made_idx._replace(source=source)
    server.shutdown()
    server.server_close()


def test_what_arrives_is_what_was_sent(remote, tmp_path):
    download.fetch(remote.source, tmp_path / "new")
    for archive in remote.source.editions[0].archives:
        expected = (remote.folder / archive.file).read_bytes()
        assert (tmp_path / "new" / archive.file).read_bytes() == expected
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_what_is_there_is_not_fetched_again(remote, tmp_path):
    first = remote.source.editions[0].archives[0]
    (tmp_path / first.file).write_bytes(b"mine")
    download.fetch(remote.source, tmp_path)
    assert (tmp_path / first.file).read_bytes() == b"mine"


def test_a_file_that_is_not_the_archive_is_refused_and_not_kept(remote, tmp_path):
    second = remote.source.editions[0].archives[1]
    (remote.folder / second.file).write_bytes(b"<html>Sign in to this network</html>")
    with pytest.raises(ValueError, match=f"{second.url} is not .*{second.checksum}"):
        download.fetch(remote.source, tmp_path / "new")
    kept = [path.name for path in (tmp_path / "new").iterdir()]
    assert kept == [remote.source.editions[0].archives[0].file]


@pytest.mark.parametrize("remote", [Short], indirect=True)
def test_a_transfer_that_breaks_off_is_an_error(remote, tmp_path):
    with pytest.raises(ConnectionError, match="by|broke off"):
        download.fetch(remote.source, tmp_path / "new", timeout=1)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("remote", [Silent], indirect=True)
def test_a_server_that_says_nothing_is_left_after_the_time_out(remote, tmp_path):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="timed out"):
        download.fetch(remote.source, tmp_path / "new", timeout=0.2)
    assert time.monotonic() - start < 1.2


def test_without_a_network_the_error_says_how_to_do_it_by_hand(made_idx, tmp_path):
    archive = made_idx.source.editions[0].archives[0]
    with pytest.raises(ConnectionError) as caught:
        download.fetch(made_idx.source, tmp_path / "new", timeout=1)
    for part in (archive.url, archive.file, archive.checksum, str(tmp_path / "new")):
        assert part in str(caught.value)
    assert "JAXKD_ARCHIVES" in str(caught.value)


def test_a_missing_file_on_the_server_is_an_error(remote, tmp_path):
    (remote.folder / remote.source.editions[0].archives[0].file).unlink()
    with pytest.raises(ConnectionError, match="404"):
        download.fetch(remote.source, tmp_path / "new")


def test_downloads_are_found_as_archives_afterwards(remote, tmp_path):
    download.fetch(remote.source, tmp_path / "new")
    assert archives.find(remote.source, [tmp_path / "new"])
