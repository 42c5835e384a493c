"""Tables and charts."""

import doctest
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from jaxkd import report
from jaxkd.report import charts, tables

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


def root(path):
    found = xml.parse(path).getroot()
    assert found.tag.endswith("svg") and "var(" not in path.read_text()
    return found


def test_curves_are_a_picture(tmp_path):
    values = np.linspace(0, 1, 12).reshape(4, 3)
    path = tmp_path / "new" / "curves.svg"
    panels = {"left": {"<one>": values[:, 0]}, "right": {"three": values}}
    report.curves(path, panels, y_label="accuracy")
    texts = [element.text for element in root(path).iter() if element.text]
    assert {"left", "right", "<one>", "three", "epoch", "accuracy"} <= {*texts}
    lines = re.findall(r'<polyline points="([^"]+)"', path.read_text())
    ys = [[float(xy.split(",")[1]) for xy in line.split()] for line in lines]
    assert len(ys) == 2
    for line in ys:  # equal steps up, drawn from the top down
        np.testing.assert_allclose(np.diff(line), (line[-1] - line[0]) / 3, atol=0.11)
        assert line[-1] < line[0]


def test_what_is_not_finite_is_not_drawn(tmp_path):
    path = tmp_path / "curves.svg"
    values = [1.0, np.nan, np.inf, 0.5]
    report.curves(path, {"": {"one": values}, "none": {"two": [np.nan]}}, y_label="y")
    root(path)
    text = path.read_text()
    assert "nan" not in text and "inf" not in text
    assert len(re.search(r'<polyline points="([^"]+)"', text)[1].split()) == 2


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e9])
def test_ticks_lie_where_their_numbers_say(scale):
    for logarithmic in (False, True):
        place, ticks = charts._scale([scale, 300 * scale], logarithmic, 7)
        assert 2 <= len(ticks) <= 8 and ticks == sorted(ticks)
        assert 0 < place(scale) < place(300 * scale) < 1
        assert all(0 <= place(tick) <= 1 for tick in ticks)


def test_dots_are_a_picture(tmp_path):
    groups = {"one": [50.0], "three": [51.0, 52.0, 54.0]}
    path = tmp_path / "new" / "dots.svg"
    report.dots(path, groups, x_label="%", line=50.5)
    circles = root(path).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == 4 + 2  # values and means
    assert path.read_text().count('stroke-dasharray="5 3"') == 1


def test_examples_of_docstrings():
    for module in (charts, tables):
        assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted
