"""Tables and pictures."""

import sys

import numpy as np
import pytest

from jaxkd import report

rows = [{"network": "teacher", "bytes": "10"}, {"network": "student", "bytes": "3"}]


def test_markdown_has_a_line_for_each_row():
    assert report.markdown(rows) == (
        "| network | bytes |\n| --- | --- |\n| teacher | 10 |\n| student | 3 |\n"
    )


def test_mean_and_sample_deviation():
    assert report.mean_sd([1.0, 2.0, 4.0], digits=3) == "2.333 ± 1.528"
    assert report.mean_sd(3.0) == "3.00"


def test_show_prints_whole_cells_in_a_pipe(capsys):
    wide = [{"network": "a" * 70, "note": "b" * 70}]
    report.show(wide, "title")
    printed = capsys.readouterr().out
    assert "title" in printed and "a" * 70 in printed and "b" * 70 in printed


def test_curves_are_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    values = np.linspace(0, 1, 12).reshape(4, 3)
    path = tmp_path / "new" / "curves.png"
    panels = {"left": {"one": values[:, 0]}, "right": {"three": values}}
    assert report.curves(path, panels, y_label="accuracy")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    panels = {"left": {"one": [0.0, 1.0]}}
    assert not report.curves(tmp_path / "curves.png", panels, y_label="accuracy")


def test_dots_are_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    groups = {"one": [50.0], "three": [51.0, 52.0, 54.0]}
    assert report.dots(tmp_path / "new" / "dots.png", groups, x_label="%", line=50.5)
    assert (tmp_path / "new" / "dots.png").read_bytes().startswith(b"\x89PNG")


def test_dots_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not report.dots(tmp_path / "dots.png", {"one": [50.0]}, x_label="%")
