"""When does distillation help? Nine questions, each one command.

    python -m experiments.studies temperature
    python -m experiments.studies capacity --dataset mnist --student-images 1000
    python -m experiments.studies crossdata --preset short

Each trains one teacher, or takes the one that an earlier study left under `--out`, then
students from several seeds, and writes a table, a picture, a sentence and every number
by seed to `runs/studies/STUDY/TIME/`. The preset `short` needs no archives and takes
less than a minute; `full` needs those of Fashion-MNIST (crossdata: CIFAR-10 and -100),
in `--archives` or from the network.
"""

import importlib
import json
import sys
from typing import Any

import tyro

from experiments.studies import _lab, _study
from experiments.studies._config import Config, help_text, resolve
from experiments.studies._finding import Finding
from jaxkd import log, report


def main(config: Config) -> Finding:
    """Runs the study; returns what was found, which is also printed and written."""
    scale = resolve(config)
    study = importlib.import_module(f"experiments.studies.{config.study}")
    lab = _lab.lab(config, scale)
    found: Finding = study.run(lab)
    write(lab, found)
    return found


def write(lab: _lab.Lab, found: Finding) -> None:
    """Prints the table and the sentences; writes them, the picture and the numbers."""
    title, where = _study.title(lab), lab.directory
    sentences = [*found.sentences, _study.regime(lab)]
    report.show(found.rows, title)
    print(*sentences, sep="\n")
    picture = f"{lab.config.study}.png"
    drawn = found.draw(where / picture)
    shown = f"![{title}]({picture})\n\n" if drawn else ""
    notes = "".join(f"* {sentence}\n" for sentence in sentences)
    made = report.listed(log.versions())
    (where / "report.md").write_text(
        f"# {title}\n\n{report.markdown(found.rows)}\nAfter the last epoch, mean ± "
        "standard deviation over seeds; gains are paired by seed, ± standard error. "
        f"Agreement and CKA are with the teacher.\n\n{notes}\n{shown}{made}"
    )
    numbers: dict[str, Any] = {"sentences": sentences, "measured": found.numbers}
    (where / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"report: {where / 'report.md'}")


if __name__ == "__main__":
    description = f"{__doc__}\n\nPresets.\n\n{help_text()}"
    main(tyro.cli(Config, description=description, args=sys.argv[1:]))
