"""The command line: `python -m jaxkd COMMAND`, `python -m jaxkd COMMAND --help`.

Exit codes: 0 done; 1 stopped by what happened in a run, such as a full disk or a loss
that is not a number; 2 a mistake in arguments, configuration or data, before any work;
130 interrupted, and saved. JAXKD_TRACEBACK=1 shows where an error comes from.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Everything that loads JAX is imported by the command that needs it: --help is quick.

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
MISTAKES = (ValueError, KeyError, ImportError, FileNotFoundError, NotImplementedError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    asked = _parser().parse_args(arguments)
    began: list[str] = []  # the run directory, once there is one
    if not os.environ.get("JAXKD_TRACEBACK"):
        # Orbax logs the traceback of an error that we say in words.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    from jaxkd import _loop

    try:
        with _loop.sigterm_as_interrupt():
            asked.run(asked, began)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        where = f" {error}" if str(error) else ""
        _say(f"interrupted{where}{_advice(began)}")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has gone; what is left must not be flushed into nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (*MISTAKES, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        if os.environ.get("JAXKD_TRACEBACK"):
            raise
        _say(f"error: {_text(error)}{_advice(began)}")
        return MISTAKE if isinstance(error, MISTAKES) and not began else FAILED
    return DONE


def _text(error: BaseException) -> str:
    """Return an error as a sentence; a KeyError would show its message's quotes."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return str(error) or type(error).__name__


def _advice(began: list[str]) -> str:
    if not began:
        return ""
    return f"\nwhat was saved is in {began[0]}: python -m jaxkd resume {began[0]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxkd",
        description="Knowledge distillation and model compression in JAX.",
        epilog="Exit codes: 0 done, 1 the run failed, 2 a mistake in what was asked, "
        "130 interrupted.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(commands, "run", _run, "run a configuration in a new directory")
    _configuration(run)
    run.add_argument(
        "--to",
        metavar="RUN",
        help="a new directory; by default out/NAME/TIME",
    )
    run.add_argument(
        "--check", action="store_true", help="stop before any work, all checks done"
    )

    resume = _command(commands, "resume", _resume, "resume a run that has stopped")
    resume.add_argument("run_directory", metavar="RUN")

    report = _command(commands, "report", _report, "write the report of runs")
    report.add_argument("run_directories", metavar="RUN", nargs="+")
    report.add_argument(
        "--to", metavar="FOLDER", help="folder of the report; by default the first RUN"
    )
    report.add_argument(
        "--tensorboard", action="store_true", help="also write RUN/tensorboard"
    )

    evaluate = _command(commands, "eval", _eval, "measure an exported file")
    evaluate.add_argument("file", metavar="FILE", help=".stablehlo, .tflite or .onnx")
    evaluate.add_argument(
        "--data",
        metavar="DATA",
        help="a folder of class folders, an .npz, a .parquet, or the name of a data "
        "set; by default that of the run the file lies in",
    )
    evaluate.add_argument(
        "--split",
        default="test",
        help='"train", "validation", "test"; or, of data given by path, "all"',
    )

    predict = _command(commands, "predict", _predict, "classify image files")
    predict.add_argument("file", metavar="FILE", help=".stablehlo, .tflite or .onnx")
    predict.add_argument("images", metavar="IMAGE", nargs="+")

    new = _command(
        commands, "new", _new, "print a configuration for a folder of images"
    )
    new.add_argument("folder", metavar="FOLDER", help="with a folder for each class")
    new.add_argument(
        "--size", type=int, help="side in pixels; by default that of most images"
    )

    features = _command(
        commands, "features", _features, "list names and shapes of taps"
    )
    features.add_argument(
        "model", metavar="MODEL", help="a network of the zoo, or a configuration"
    )
    features.add_argument(
        "--image",
        metavar="H,W,C",
        default="32,32,3",
        help="an image, for the zoo",
    )
    features.add_argument("--classes", type=int, default=10, help="for the zoo")

    export = _command(commands, "export", _export, "write a run's model as files")
    export.add_argument("run_directory", metavar="RUN")
    export.add_argument("--model", help="its name; by default the one changed last")
    export.add_argument(
        "--formats",
        nargs="+",
        default=["stablehlo"],
        choices=["stablehlo", "tflite", "onnx"],
    )
    export.add_argument("--to", metavar="FOLDER", help="by default RUN/exported")

    data = _command(commands, "data", None, "data sets")
    verbs = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    prepare = _command(verbs, "prepare", _prepare, "download, verify and decode")
    prepare.add_argument("name", metavar="NAME", help="digits, mnist, cifar10, ...")
    prepare.add_argument("--archives", help="folder with the official archives")
    prepare.add_argument("--data-dir", help="where prepared data is kept")

    config = _command(commands, "config", _config, "print a configuration, resolved")
    config.add_argument("config", metavar="CONFIG", nargs="?", help="a file or a name")
    config.add_argument("--defaults", action="store_true", help="every key there is")
    config.add_argument(
        "--list", action="store_true", help="the shipped configurations"
    )
    _settings(config)
    return parser


def _command(commands: Any, name: str, run: Callable | None, about: str) -> Any:
    made = commands.add_parser(name, help=about, description=f"{name}: {about}.")
    if run is not None:
        made.set_defaults(run=run)
    return made


def _configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="a TOML file, or the name of a shipped one"
    )
    _settings(parser)


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value: stages.1.temperature=2, stages.distill.epochs=5",
    )


def _run(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import reading

    config = reading.load(asked.config, asked.set)  # first: JAX takes a second to load
    from jaxkd.pipeline import commands, run

    if asked.check:
        commands.check(config, asked.to)
        print("all checks passed; nothing was run")
        return
    if not _is_first("run"):
        return

    def created(path: str) -> None:
        began.append(path)
        _say(f"run {path}")

    _finish(run.start(config, asked.to, say=_say, created=created))


def _resume(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import run

    if not _is_first("resume"):
        return

    def opened(path: str) -> None:
        began.append(path)

    _finish(run.resume(asked.run_directory, say=_say, opened=opened))


def _is_first(command: str) -> bool:
    """Return whether this process does the work: of several of one job, the first."""
    from jaxkd import processes

    first = processes.is_first(os.environ)
    if not first:
        place = processes.place(os.environ)
        _say(
            f"this is {place}: {command} uses one process, and the first makes the "
            "run. For a run of its own in each, set JAX_NUM_PROCESSES=1"
        )
    return first


def _finish(run: Any) -> None:
    """Print the table of a finished run, and leave its report."""
    from jaxkd import report
    from jaxkd.pipeline import summary

    report.show(summary.rows(run), str(run))
    for path in summary.write_report([run]):
        _say(f"report {path}")


def _report(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd import report
    from jaxkd.pipeline import summary

    for path in asked.run_directories:
        report.show(summary.rows(path), str(path))
    written = report.write_events(asked.run_directories) if asked.tensorboard else []
    for path in [*summary.write_report(asked.run_directories, asked.to), *written]:
        _say(f"report {path}")


def _eval(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import applying

    for name, value in applying.measure(asked.file, asked.data, asked.split).items():
        print(f"{name} {value}")


def _predict(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import applying

    for line in applying.predict(asked.file, asked.images):
        print(line)


def _new(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import new

    print(new.for_folder(asked.folder, size=asked.size), end="")


def _features(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import commands

    for line in commands.features(asked.model, asked.image, asked.classes):
        print(line)


def _export(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import commands

    for row in commands.export(
        asked.run_directory, asked.model, asked.formats, asked.to
    ):
        print("  ".join(f"{k} {v}" for k, v in row.items() if v is not None))


def _prepare(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd import data

    folder = data.prepare(asked.name, archives=asked.archives, data_dir=asked.data_dir)
    print(f"{asked.name} is ready in {folder}")


def _config(asked: argparse.Namespace, began: list[str]) -> None:
    from jaxkd.pipeline import reading

    if asked.list:
        print("\n".join(reading.shipped()))
        return
    from jaxkd.pipeline import toml

    if asked.defaults:
        print(toml.dumps(toml.defaults(), comments=True), end="")
    elif asked.config:
        config = reading.load(asked.config, asked.set)
        print(toml.dumps(config, comments=True), end="")
    else:
        raise ValueError("give a configuration, --defaults or --list")


if __name__ == "__main__":
    sys.exit(main())
