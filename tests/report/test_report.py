"""The report of runs: its numbers, its form, and what it does with less than a run."""

import base64
import doctest
import io
import itertools
import json
import re
import shutil
import statistics

import numpy as np
import pytest
from PIL import Image

from jaxkd import report
from jaxkd.report import (
    history,
    merging,
    page as page_module,
    predictions,
    reading,
    results,
)
from tests.report import runs
from tests.report.pages import Page

HOSTILE = "<script>alert(1)</script>\"'&`| $x^2$ [a](http://b.example) \x00\ud800"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return [runs.make(folder / f"seed{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def run(seeds, tmp_path):
    """A copy to take things away from."""
    return shutil.copytree(seeds[0], tmp_path / "run")


def written(paths, out=None):
    files = {path.name: path for path in report.write(paths, out)}
    page = files["report.html"].read_text()
    return Page(page), files["results.md"].read_text()


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_rows(run, **values):
    found = json.loads((run / "results.json").read_text())
    rows = [row | values for row in found["rows"]]
    (run / "results.json").write_text(json.dumps(found | {"rows": rows}))


def notes(page):
    return " ".join(page.text("p"))


# The numbers.


def test_accuracy_in_the_table_is_that_of_the_logits(seeds, tmp_path):
    page, text = written([seeds[1]], tmp_path)
    labels = np.load(seeds[1] / "test" / "labels.npy")
    table = {row["after"]: row for row in page.table("agreement %")}
    stages = {"teach (train)": "00-teach", "distill": "01-distill", "prune": "02-prune"}
    teacher = np.load(seeds[1] / "stages" / "00-teach" / "logits.npy").argmax(1)
    for title, folder in stages.items():
        answer = np.load(seeds[1] / "stages" / folder / "logits.npy").argmax(1)
        right, same = 100 * np.mean(answer == labels), 100 * np.mean(answer == teacher)
        assert table[title]["accuracy %"] == f"{right:.2f}"
        assert table[title]["agreement %"] == f"{same:.2f}"
        assert f"| {title} |" in text and f"| {right:.2f} |" in text
    assert right > 60  # something has been learned


def test_runs_that_differ_in_the_seed_are_a_mean_and_a_deviation(seeds, tmp_path):
    page, text = written(seeds, tmp_path)
    found = [json.loads((run / "results.json").read_text())["rows"] for run in seeds]
    for place, row in enumerate(page.table("agreement %")[:3]):
        for column, key, scale, digits in (
            ("accuracy %", "accuracy", 100, 2),
            ("NLL", "nll", 1, 4),
            ("ECE %", "ece", 100, 2),
        ):
            values = [scale * rows[place][key] for rows in found]
            mean, sd = statistics.mean(values), statistics.stdev(values)
            assert row[column] == f"{mean:.{digits}f} ± {sd:.{digits}f}"
            assert row[column] in text
    assert page.table("images/s")[0]["images/s"] == "1,001 ± 1"  # of 1000, 1001, 1002
    assert page.table("MACs")[0]["MACs"] == "640"
    assert "Comparison" not in page.text("h2")


def test_what_matters_most_is_said_first(seeds, tmp_path):
    page, _ = written(seeds, tmp_path)
    labels = np.load(seeds[0] / "test" / "labels.npy")
    right = lambda run, name: np.mean(
        np.load(run / "stages" / name / "logits.npy").argmax(1) == labels
    )
    gap = 100 * np.mean([right(r, "02-prune") - right(r, "00-teach") for r in seeds])
    said = page.text("dd")
    assert gap < -5 and f"\u2212{-gap:.2f} points to teacher" in said[1]
    assert {"170", "3.8 times fewer", "160", "4.0 times fewer"} <= {*said}


def test_files_have_bytes_parity_latency_and_what_they_lose(seeds, tmp_path):
    page, text = written([seeds[0]], tmp_path)
    (row,) = page.table("parity")
    assert row["file"] == "student.tflite" and row["format"] == "tflite"
    assert (row["bytes"], row["parity"], row["latency ms"]) == (
        "1,234",
        "0.046",
        "0.025",
    )
    assert row["to JAX, points"] == "\u22120.20"  # the run says 0.002 less
    assert "student.tflite" in [r["after"] for r in page.table("agreement %")]
    assert "student.tflite" in text


def test_confusion_counts_each_image_once(seeds, tmp_path):
    page, _ = written(seeds, tmp_path)
    labels = np.load(seeds[0] / "test" / "labels.npy")
    wanted = np.zeros((10, 10), int)
    for run in seeds:
        answer = np.load(run / "stages" / "00-teach" / "logits.npy").argmax(1)
        for label, prediction in zip(labels, answer, strict=True):
            wanted[label, prediction] += 1
    heads = [
        table for table in page.tables if table[0][0] == "label" and len(table) > 10
    ]
    got = [[int(cell) for cell in row[1:]] for row in heads[0][1:]]
    assert len(heads) == 2 and got == wanted.tolist() and wanted.sum() == 1500
    assert f"teacher: {np.trace(wanted):,} of 1,500 right" in notes(page)


def test_examples_are_where_they_differ_and_show_that_image(seeds, tmp_path):
    page, _ = written([seeds[0]], tmp_path)
    images, labels = (
        np.load(seeds[0] / "test" / f"{n}.npy") for n in ("images", "labels")
    )
    teacher, student = (
        np.load(seeds[0] / "stages" / name / "logits.npy").argmax(1)
        for name in ("00-teach", "02-prune")
    )
    shown = 0
    for tag in page.named("img"):
        place = int(re.search(r"test image (\d+)", tag.attributes["alt"])[1])
        content = base64.b64decode(tag.attributes["src"].partition("base64,")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(pixels, images[place, ..., 0])
        assert tag.attributes["alt"].endswith(f"a {labels[place]}")
        shown += teacher[place] != student[place]
    assert shown >= 8


def test_places_that_differ_are_all_found_once(seeds):
    run = reading.read(seeds[0])
    names = ("00-teach", "02-prune")
    t, s = (
        np.load(seeds[0] / "stages" / n / "logits.npy").astype(float) for n in names
    )
    labels = np.load(seeds[0] / "test" / "labels.npy")
    pair = predictions.Answers(run, labels, t, s)
    found = predictions.disagreements(pair)
    a, b = t.argmax(1), s.argmax(1)
    assert sorted(np.concatenate(found)) == np.flatnonzero(a != b).tolist()
    assert (a[found[0]] == labels[found[0]]).all() and len(found[0])
    assert (b[found[1]] == labels[found[1]]).all() and len(found[1])
    assert (a[found[2]] != labels[found[2]]).all()
    sure = (runs.softmax(t).max(1) * runs.softmax(s).max(1))[found[0]]
    assert (np.diff(sure) <= 1e-12).all()


def test_soft_labels_are_the_softmax_at_each_temperature(seeds, tmp_path):
    page, _ = written([seeds[0]], tmp_path)
    teacher, student = (
        np.load(seeds[0] / "stages" / name / "logits.npy").astype(float)
        for name in ("00-teach", "02-prune")
    )
    places = [
        int(re.match(r"image (\d+):", p)[1]) for p in page.text("p") if p[:5] == "image"
    ]
    heights = [float(tag.attributes["height"]) for tag in page.named("rect")]
    bars = np.reshape(heights, (4, 4, 10, 2))  # image, temperature, class, model
    assert len(places) == 4
    for place, panels in zip(places, bars, strict=True):
        for temperature, panel in zip((1, 2, 5, 10), panels, strict=True):
            both = [runs.softmax(z[place] / temperature) for z in (teacher, student)]
            # In a panel the heights are in the relation of the probabilities.
            wanted = np.stack(both, 1)
            np.testing.assert_allclose(panel / panel.sum(), wanted / 2, atol=2e-3)


def test_configurations_are_compared_and_their_difference_is_named(seeds, tmp_path):
    other = runs.make(tmp_path / "other", temperature=4.0)
    page, text = written([*seeds, other], tmp_path)
    rows = page.table("configuration")
    assert [row["configuration"] for row in rows] == ["digits A", "digits B"]
    assert [row["runs"] for row in rows] == ["3", "1"]
    assert page.table("key") == [
        {"key": "stages.distill.temperature", "digits A": "2.0", "digits B": "4.0"}
    ]
    assert page.text("h2") == ["Comparison", "digits A", "digits B"]
    assert "stages.distill.temperature" in text


def test_a_stage_that_one_does_not_have_is_one_row():
    stages = [{"kind": "train", "name": "teach", "epochs": 2}]
    more = [*stages, {"kind": "prune", "name": "cut", "ratio": 0.5, "step": 0.1}]
    found = [
        merging.RunGroup(
            name,
            [reading.RunRecord(None, None, {"seed": 1, "stages": s}, "", [], None, [])],
            [],
        )
        for name, s in (("a", stages), ("b", more))
    ]
    assert merging.differences(found) == [
        {"key": "stages.cut", "a": "\u2013", "b": "prune"}
    ]


def test_a_hundred_classes_are_a_picture_of_counts(run):
    rng, n = np.random.default_rng(0), 100
    labels = np.arange(500) % n
    np.save(run / "test" / "labels.npy", labels)
    for path in (run / "stages").glob("*/logits.npy"):
        np.save(path, rng.normal(size=(500, n)) + 4 * np.eye(n)[labels])
    page, text = written([run])
    check_form(page, (run / "report.html").read_text())
    heat = [t for t in page.named("img") if "confusion" in t.attributes["alt"]]
    assert len(heat) == 2
    content = base64.b64decode(heat[1].attributes["src"].partition("base64,")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)))[::4, ::4].astype(int)
    answer = np.load(run / "stages" / "02-prune" / "logits.npy").argmax(1)
    counts = np.zeros((n, n), int)
    np.add.at(counts, (labels, answer), 1)
    np.testing.assert_array_equal((pixels != 255).any(-1), counts > 0)
    # On the diagonal what is right is blue, beside it what is wrong is orange.
    assert (pixels[..., 2] > pixels[..., 0])[np.eye(n, dtype=bool) & (counts > 0)].all()
    assert (pixels[..., 2] < pixels[..., 0])[
        ~np.eye(n, dtype=bool) & (counts > 0)
    ].all()
    bars = page.named("rect")
    assert len(bars) == 4 * 4 * 10 * 2  # the likeliest ten of them


def test_searches_and_prunings_have_their_tables(seeds, tmp_path):
    page, _ = written([seeds[0]], tmp_path)
    rows = page.table("reward")
    assert [row["candidate"] for row in rows] == ["2", "3", "1"]
    assert [row["width"] for row in rows] == ["16", "8", "4"]
    assert "candidates; all have" not in " ".join(page.text("caption"))
    pruned = page.table("removed %")
    assert [row["left"] for row in pruned] == ["6", "4"]
    assert [row["removed %"] for row in pruned] == ["25", "0"]


def test_what_all_candidates_share_is_said_once(run):
    rows = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    rows = [r | {"values": {"depth": 3, "width": r.get("trial")}} for r in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page, _ = written([run])
    assert "depth" not in page.table("reward")[0] and "width" in page.table("reward")[0]
    assert "The best 3 of 3 candidates; all have depth 3." in page.text("caption")


def test_a_curve_is_the_last_row_of_each_epoch(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "teach", "epoch": 2, "loss": 7.5}\n')
    x, y = history.curve(reading.read(run), "teach", "loss")
    assert x.tolist() == [*range(1, 31)] and y[1] == 7.5


# The form.


def check_form(page, text):
    """Everything is closed, described, and in the page itself."""
    assert not page.open
    for tag in page.tags:
        for name, value in tag.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("data:image/png;base64,", "#")), tag
            assert not name.startswith("on")
    assert not page.named("script", "link", "iframe", "object", "base", "form")
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert all(tag.attributes.get("alt") for tag in page.named("img"))
    described = [t for t in page.named("svg") if t.attributes.get("aria-label")]
    assert described == page.named("svg")
    ids = [t.attributes["id"] for t in page.tags if "id" in t.attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert {*used} <= {*ids}
    levels = [int(tag.name[1]) for tag in page.named("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(tag.attributes.get("scope") for tag in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table"))


def test_the_page_needs_nothing_else_and_says_what_its_pictures_show(seeds, tmp_path):
    written(seeds[:2], tmp_path)
    text = (tmp_path / "report.html").read_text()
    check_form(Page(text), text)


def test_charts_are_described_in_words(seeds, tmp_path):
    page, _ = written([seeds[0]], tmp_path)
    labels = " ".join(t.attributes["aria-label"] for t in page.named("svg"))
    assert "Accuracy against size" in labels and "Curves of distill" in labels
    assert "candidates" in labels and "Sensitivities" in labels
    assert "fc: 0.625 at 75 %" in labels  # 1 of 4 units is kept
    for term in ("loss", "ce (term)", "kd (term)"):
        assert any(term == data.strip() for data in page.text("text")), term


def test_the_same_runs_give_the_same_bytes(seeds, tmp_path):
    a, b = (report.write(seeds, tmp_path / name) for name in "ab")
    assert [x.read_bytes() for x in a] == [x.read_bytes() for x in b]
    assert [path.name for path in a] == ["report.html", "results.md"]


def test_names_are_text_and_nothing_else(tmp_path):
    run = runs.make(tmp_path / "run", name=HOSTILE)
    change(run / "run.json", device=HOSTILE, data={"classes": [HOSTILE] * 10})
    change_rows(run, model=HOSTILE, stage=HOSTILE, kind=HOSTILE)
    rows = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    rows = [row | {"stage": HOSTILE, "values": {HOSTILE: HOSTILE}} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page, text = written([run])
    check_form(page, (run / "report.html").read_text())
    seen = HOSTILE.replace("\ud800", "?")
    assert page.text("h1") == [seen]
    assert {row["model"] for row in page.table("agreement %")} == {seen}
    assert "<script" not in text and not re.search(r"(?<!\\)\]\(http", text)
    # A bar within a cell is escaped: each line of a table has the columns of its head.
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in text.split("\n")]
    for before, after in itertools.pairwise(bars):
        assert not (before and after) or before == after


def test_examples_of_docstrings():
    for module in (page_module, predictions, results):
        assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


# Less than a run.


def test_an_unfinished_run_says_so(seeds, run):
    found = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(
        json.dumps(found | {"finished": False, "rows": found["rows"][:2]})
    )
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(x for x in lines if '"prune"' not in x))
    page, text = written([run])
    assert "has not finished: it has results of 2 of its 5" in notes(page)
    assert page.text("b") == ["prune", "search", "export"]
    said = [p for p in page.text("p") if "This stage" in p]
    assert said == [
        ": This stage has not run yet.",
        ": This stage has not finished yet.",  # its candidates are there
        ": This stage has not run yet.",
    ]
    assert "prune: This stage has not run yet." in text
    assert "has not finished" not in notes(written([seeds[0]], run / "other")[0])


@pytest.mark.parametrize(
    "gone, note",
    [
        ("config.toml", "config.toml is missing"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
        ("test/labels.npy", "no test labels"),
        ("test", "no test labels"),
        ("test/images.npy", ""),
        ("run.json", ""),
        ("stages", ""),
        ("results.json", "has not finished: it has results of 0 of its 5"),
        ("stages/00-teach/logits.npy", ""),
        ("stages/02-prune/groups.txt", ""),
    ],
)
def test_what_is_gone_is_left_out(run, gone, note):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page, _ = written([run])
    assert note in notes(page)
    check_form(page, (run / "report.html").read_text())
    if gone == "results.json":
        assert "No model has been measured yet." in notes(page)
    else:
        assert page.table("agreement %")[0]["agreement %"] == "100.00"


@pytest.mark.parametrize(
    "name", ["test/labels.npy", "stages/01-distill/logits.npy", "config.toml"]
)
def test_a_torn_file_is_as_one_that_is_gone(run, name):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2] + b"\xff")
    page, _ = written([run])
    assert len(page.table("agreement %")) == 5


def test_a_torn_line_is_left_out_and_told(run):
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(rows + '{"stage": "teach", "ep')
    found = reading.read(run)
    assert len(found.metrics) == rows.count("\n")
    assert (
        f"line {rows.count(chr(10)) + 1} of metrics.jsonl is damaged" in found.notes[0]
    )


def test_without_a_teacher_the_student_stands_alone(run):
    change(run / "results.json", teacher=None)
    change_rows(run, agreement=None)
    page, _ = written([run])
    assert {row["agreement %"] for row in page.table("agreement %")} == {"\u2013", ""}
    assert len([t for t in page.tables if len(t) == 11]) == 1  # one matrix
    assert "Soft labels" not in page.text("h3") and not page.named("img")


def test_a_teacher_alone(run):
    found = json.loads((run / "results.json").read_text())
    change(run / "results.json", rows=found["rows"][:1], finished=False)
    page, _ = written([run])
    assert page.table("agreement %")[0]["model"] == "teacher"
    assert "Soft labels" not in page.text("h3")


def test_without_files_there_is_no_table_of_them(run):
    change_rows(run, files=[])
    assert "Exported files" not in written([run])[0].text("h3")


def test_numbers_that_are_not_finite_are_shown(run):
    change_rows(run, nll=float("nan"), ece=float("inf"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "teach", "epoch": 31, "loss": NaN, "loss/ce": 1e400}\n')
    page, _ = written([run])
    row = page.table("agreement %")[0]
    assert (row["NLL"], row["ECE %"]) == ("nan", "inf")
    labels = " ".join(t.attributes["aria-label"] for t in page.named("svg"))
    assert "Curves of teach over 31 epochs: loss ends at nan" in labels


def test_a_row_that_is_not_what_its_logits_say_is_told(run):
    change_rows(run, accuracy=0.25)
    assert "the accuracy after teach is 0.2500 by results.json" in notes(
        written([run])[0]
    )


def test_seeds_of_which_one_has_stopped_early(seeds, run):
    found = json.loads((run / "results.json").read_text())
    change(run / "results.json", rows=found["rows"][:2], finished=False)
    rows = written([run, *seeds[1:]])[0].table("agreement %")
    assert [r["after"] for r in rows][:3] == [
        "teach (train)", "distill", "prune, 2 of 3 runs",
    ]  # fmt: skip
    assert " ± " in rows[2]["accuracy %"]


def test_the_same_seed_twice_is_told_and_the_same_run_is_one(seeds, run):
    _, notes = merging.group_runs([reading.read(seeds[0]), reading.read(run)])
    assert "the seed 0 is there more than once" in notes[0]
    page, _ = written([run, run / ".." / "run"])
    assert "±" not in page.table("agreement %")[0]["accuracy %"]


def test_a_failed_write_leaves_the_report_before(run, monkeypatch):
    (before, _) = report.write([run])
    text = before.read_text()
    monkeypatch.setattr(
        page_module.store.os, "replace", lambda *_: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):
        report.write([run])
    assert before.read_text() == text
    assert not [path for path in run.iterdir() if path.name.startswith(".report")]


@pytest.mark.bad_input
def test_what_is_no_run_is_refused(seeds, tmp_path, run):
    with pytest.raises(ValueError, match=r"nothing is not a run directory"):
        report.write([seeds[0], tmp_path / "nothing"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="at least one run"):
        report.write([])
    with pytest.raises(ValueError, match="sequence"):
        report.write(str(run))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["run.json", "results.json"])
def test_another_format_is_refused(run, name):
    change(run / name, format=2)
    with pytest.raises(ValueError, match=rf"{name} is damaged or of another version"):
        report.write([run])
    (run / name).write_text("{")
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        report.write([run])


@pytest.mark.bad_input
def test_a_value_of_another_type_is_named(run):
    change_rows(run, parameters="many")
    with pytest.raises(ValueError, match=r"results\.json is damaged.*rows.*parameters"):
        report.write([run])
    (run / "metrics.jsonl").write_text('{"stage": "search", "trial": "x"}\n[1]\n')
    change_rows(run, parameters=1)
    page, _ = written([run])
    assert "line 1 of metrics.jsonl is damaged and left out" in notes(page)


@pytest.mark.parametrize("name", ["report.html", "results.md"])
def test_a_file_of_others_beside_a_report_is_not_replaced(tmp_path, name):
    run = runs.make(tmp_path / "run")
    files = report.write([run])
    before = [file.read_bytes() for file in files]
    assert report.write([run]) == files  # its own are
    assert [file.read_bytes() for file in files] == before
    edited = (run / name).read_text().replace("report", "thesis", 1)
    for mine in ("mine", "", edited):
        (run / name).write_text(mine)
        with pytest.raises(ValueError, match=rf"{name} was not .* or was changed"):
            report.write([run])
        assert (run / name).read_text() == mine
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} was not written"):
        report.write([run])
