"""The benches run, count what they say they count, and survive a lack of memory."""

import contextlib
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import (
    cache,
    cases,
    hardware,
    roofline,
    step_speed,
)
from jaxkd import cost, jaxpr
from jaxkd.models import mlp

DEEP = pytest.mark.slow  # traced for a second or two
STEPS, BATCH = 3, 4
TINY = {
    "student": functools.partial(mlp, [8], classes=10),
    "teacher": functools.partial(mlp, [16], classes=10),
    "shape": (4, 4, 1),
    "batch_size": BATCH,
    "steps": STEPS,
    "kd": (2.0, 0.5, 0.5),
    "teachers": ("live", "cached", "none"),
}
# Of one image: 16 pixels, a hidden layer, 10 classes.
STUDENT_MACS, TEACHER_MACS = 16 * 8 + 8 * 10, 16 * 16 + 16 * 10


@pytest.fixture
def tiny(monkeypatch):
    """An experiment "tiny" that the benches know."""
    monkeypatch.setitem(cases.CASES, "tiny", TINY)


@functools.cache
def setting(teacher):
    return step_speed.setting(TINY, teacher)


# Work


@pytest.mark.parametrize(
    ("teacher", "each"),
    [
        ("live", 6 * STUDENT_MACS + 2 * TEACHER_MACS),
        ("cached", 6 * STUDENT_MACS),
        ("none", 6 * STUDENT_MACS),
    ],
)
def test_flops_of_a_step_by_hand(teacher, each):
    assert cases.flops(TINY, teacher) == BATCH * each


@pytest.mark.parametrize("teacher", ["live", "none"])
def test_flops_are_those_of_the_traced_step_and_of_the_images_gradient(teacher):
    s = setting(teacher)
    batch = s.view(jax.random.key(0), {k: v[:BATCH] for k, v in s.resident.items()})
    traced = cost.macs(s.distiller.step, s.state, s.variables, batch)
    images_gradient = BATCH * 16 * 8  # of the first layer, which no step computes
    assert cases.flops(TINY, teacher) == 2 * (traced + images_gradient)


def test_every_case_has_its_networks():
    for case in cases.CASES.values():
        student, teacher = cases.networks(case, jnp.bfloat16)
        assert student and (teacher is None) == (case["teachers"] == ("none",))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if "cnn" in name or "vgg" in name else DEEP)
        for name, case in cases.CASES.items()
        if case["teacher"]
    ],
)
def test_the_networks_of_every_pair_fit_its_images_and_each_other(name):
    case = cases.CASES[name]
    x = jax.ShapeDtypeStruct((2, *case["shape"]), jnp.float32)
    for net in cases.networks(case, jnp.bfloat16):
        variables = jax.eval_shape(net.init, jax.random.key(0), x)
        out, _ = jax.eval_shape(
            functools.partial(net.apply, train=False), *variables, x
        )
        assert out.logits.shape == (2, case.get("classes", 10))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


# Ways to run a case


@pytest.mark.parametrize("mode", ["step", "loop", "scan"])
def test_every_way_takes_the_steps_of_an_epoch(mode):
    s = setting("none")
    program, _, epoch = step_speed._way(s, mode)
    state, metrics = epoch(jax.jit(program), s.state)
    assert state.step == STEPS
    assert metrics["loss"].shape == ((STEPS,) if mode == "scan" else ())
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), state.params, s.state.params)
    assert all(jax.tree.leaves(moved))


def test_a_compiled_case_is_not_compiled_again_when_it_runs(caplog):
    made = step_speed.ready(setting("none"), "scan")
    assert made.compile_s > 0 and made.trace_s > 0
    with jax.log_compiles():
        made.run()
        made.run()  # from the state that the first one left
    assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


def test_the_cold_compilation_leaves_the_persistent_cache_alone(tmp_path):
    values = jax.config.values
    least = "jax_persistent_cache_min_compile_time_secs"
    own = {name: values[name] for name in ("jax_compilation_cache_dir", least)}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update(least, 0)
    try:
        with hardware.cold():  # forgets the other directory
            pass
        counts = []
        for factor in (3, 5, 7):
            with hardware.cold() if factor == 5 else contextlib.nullcontext():
                jax.jit(lambda x, f=factor: x * f + 1).lower(1.0).compile()
            counts.append(len(list(tmp_path.iterdir())))
        before, cold, after = counts
        assert 0 < before == cold < after
    finally:
        for name, value in own.items():
            jax.config.update(name, value)
        with hardware.cold():
            pass


def test_memory_of_a_program_by_hand():
    x = jnp.zeros(1024)
    kept = hardware.memory(jax.jit(lambda x: x + 1).lower(x).compile())
    assert kept.arguments == 4096
    assert kept.peak - kept.temporaries == 2 * 4096  # in and out
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert hardware.memory(donated).peak == kept.peak - 4096


# Rows


def test_step_speed_prints_a_line_a_case_and_the_table_elsewhere(tiny, capsys):
    config = step_speed.Config(
        experiments=("tiny",), teachers=("live", "none"), repeats=1, peak=1e6
    )
    rows = step_speed.main(config)
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == rows
    assert "ms/step" in printed.err and "error" not in printed.err
    ways = [(row["teacher"], row["mode"]) for row in rows]
    assert ways == [(t, m) for t in ("live", "none") for m in ("loop", "scan")]
    for row in rows:
        assert {"experiment", "device", "jax"} < set(row)
        per_step = row["ms_per_step"] / 1e3
        flops = cases.flops(TINY, row["teacher"])
        assert row["images_per_s"] == pytest.approx(BATCH / per_step, rel=1e-2)
        assert row["mfu"] == pytest.approx(flops / per_step / 1e6, rel=1e-2, abs=1e-4)
        assert row["peak_mib"] > 0 and row["compile_s"] >= 0
    assert all(("over_loop" in row) == (row["mode"] == "scan") for row in rows)
    assert rows[1]["over_loop"] > 0 and rows[1]["over_step"] is None


def test_the_ratio_is_the_median_of_the_pairs():
    seconds = {("live", "scan"): [2, 6, 4], ("live", "loop"): [1, 2, 4]}  # 2, 3, 1
    assert step_speed._ratio(seconds, "live", "loop") == 2
    assert step_speed._ratio(seconds, "live", "step") is None


def test_a_profile_is_written_on_request(tiny, tmp_path):
    step_speed.main(
        step_speed.Config(
            experiments=("tiny",),
            teachers=("none",),
            modes=("step",),
            dtype="bfloat16",
            repeats=1,
            profile=str(tmp_path),
        )
    )
    assert list((tmp_path / "tiny-none-step").rglob("*.xplane.pb"))


def test_cache_finds_its_crossover(tiny, capsys):
    (row,) = cache.main(
        cache.Config(experiments=("tiny", "cifar10_cnn_teacher"), repeats=1)
    )
    assert json.loads(capsys.readouterr().out) == row
    assert row["images"] == STEPS * BATCH
    # Logits of 10 classes, 4 bytes each; the row has four decimals.
    assert row["cache_mib"] == round(STEPS * BATCH * 10 * 4 / 2**20, 4)
    assert min(row[f"{k}_s"] for k in ("live", "cached", "score", "cache_teacher")) >= 0
    assert row["pays_from_epochs"] == cache.pays_from(row["crossover"])


def test_crossover_by_hand():
    # Turns: 2 / (5 - 3), 9 / (6 - 3), 4 / (4 - 2).
    assert cache.crossover([2, 9, 4], [5, 6, 4], [3, 3, 2]) == 2
    assert cache.crossover([2, 9, 4], [5, 3, 2], [3, 3, 2]) is None  # mostly nothing
    assert cache.crossover([2, 9, 4], [5, 6, 2], [3, 3, 2]) == 3
    # At the crossover itself the two cost the same; before the first epoch none can.
    counts = [cache.pays_from(epochs) for epochs in (-1.0, 0.5, 1.0, 2.5, None)]
    assert counts == [1, 1, 2, 3, None]


# Memory that runs out


def test_a_case_that_does_not_fit_says_so_and_the_others_go_on(
    tiny, monkeypatch, capsys
):
    huge = TINY | {"batch_size": 10**15}
    monkeypatch.setitem(cases.CASES, "huge", huge)
    config = {"teachers": ("none",), "modes": ("step",), "repeats": 1}
    rows = step_speed.main(step_speed.Config(experiments=("huge", "tiny"), **config))
    assert rows[0]["error"].startswith("does not fit: the data needs")
    assert "ms_per_step" not in rows[0] and "error" not in rows[1]
    assert "does not fit" in capsys.readouterr().err
    (row,) = cache.main(cache.Config(experiments=("huge",)))
    assert row["error"].startswith("does not fit: the data needs")


def test_a_program_larger_than_memory_is_not_run(monkeypatch):
    s = setting("none")
    # The data are 192 bytes.
    monkeypatch.setattr(hardware, "memory_limit", lambda: 1000)
    with pytest.raises(MemoryError, match="the program needs .* MiB of memory"):
        step_speed.ready(s, "step")


def test_a_block_that_runs_out_of_memory_leaves_the_others_their_turns():
    turns, tries = [], []

    def heavy():
        tries.append(0)
        if len(tries) == 4:
            jnp.zeros(1 << 45).block_until_ready()  # 128 TiB: the allocator refuses

    failures = {}
    blocks = {"heavy": heavy, "light": lambda: turns.append(0)}
    seconds = step_speed.alternate(blocks, 5, failures=failures)
    assert len(seconds["light"]) == 5 and len(turns) == 6  # one warms up
    assert "RESOURCE_EXHAUSTED" in failures["heavy"] and "light" not in failures
    assert len(tries) == 4  # not tried again
    tries.clear()
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        step_speed.alternate(blocks, 5)


def test_only_a_lack_of_memory_is_forgiven():
    failures = {}
    with pytest.raises(ValueError, match="another"), hardware.fitting(failures, "a"):
        raise ValueError("another")
    with pytest.raises(RuntimeError), hardware.fitting(failures, "a"):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
    assert not failures


def test_the_memory_limit_of_this_machine_is_sane():
    assert 2**28 < hardware.memory_limit() < 2**50


# Peaks


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_the_stated_peak_of_a_device(kind, tera):
    assert hardware.peak(kind) == tera * 1e12


@pytest.mark.parametrize(
    "kind", ["cpu", "TPU v4 lite", "Tesla V100S-PCIE-32GB", "NVIDIA A100 MIG 1g.5gb"]
)
def test_no_peak_is_made_up(kind):
    assert hardware.peak(kind) is None


def test_every_peak_has_a_source():
    assert all(source.startswith("https://") for _, source in hardware.PEAKS.values())


# On paper


def test_launches_by_hand():
    def f(x, w):
        y = x @ w  # reads both, writes y
        a = jnp.maximum(y + 1, 0)  # a part of what follows, and a result
        return a, jnp.sum(a), jnp.sum(a * a)  # one launch: both read a

    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 8), (8, 16)))
    found = roofline.launches(jaxpr.trace(f, x, w))
    x, w, y = 4 * 4 * 8, 4 * 8 * 16, 4 * 4 * 16  # bytes
    assert sorted(found) == [(0, y + 2 * 4), (0, 2 * y), (2 * 4 * 8 * 16, x + w + y)]


def test_what_is_used_often_is_stored_where_that_moves_less():
    def f(times, a, b, c):
        s = a + b + c
        return [jnp.sum(s * i, axis=1) for i in range(1, times + 1)]

    shapes = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 3
    size = 4 * 256 * 256
    for times in (1, 5):
        program = jaxpr.trace(functools.partial(f, times), *shapes)
        moved = sum(bytes for _, bytes in roofline.launches(program))
        # Once it is computed while it is summed; else it is written and read.
        assert moved == size * (3 if times == 1 else 5) + times * 4 * 256


def test_a_strided_gradient_multiplies_no_zeros():
    conv = lambda x, w: jax.lax.conv(x, w, (2, 2), "SAME")
    x = jax.ShapeDtypeStruct((1, 3, 8, 8), jnp.float32)
    w = jax.ShapeDtypeStruct((5, 3, 2, 2), jnp.float32)
    grads = jax.grad(lambda x, w: conv(x, w).sum(), (0, 1))
    work = sum(flops for flops, _ in roofline.launches(jaxpr.trace(grads, x, w)))
    assert work == 2 * 2 * (5 * 4 * 4) * (3 * 2 * 2)


def test_the_roofline_of_the_mlps(capsys):
    rows = roofline.main(roofline.Config(names=("mnist_mlp",)))
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == rows
    assert "bound" in printed.err
    assert [row["teacher"] for row in rows] == ["live"] * 2 + ["cached"] * 2
    case = cases.CASES["mnist_mlp"]
    first = case["student"].keywords["widths"][0]
    images_gradient = 2 * case["batch_size"] * 28 * 28 * first  # not computed
    for row in rows:
        flops = cases.flops(case, row["teacher"]) - images_gradient
        assert row["gflop"] == pytest.approx(flops / 1e9, rel=1e-3)
        limits = [row[f"{kind}_ms"] for kind in ("compute", "memory", "launch")]
        assert max(limits) == row[f"{row['bound']}_ms"]
        assert max(limits) <= row["in_turn_ms"] * 1.001 <= sum(limits) * 1.002
    assert rows[0]["bound"] == "launch" and rows[1]["bound"] == "memory"


def test_the_counts_are_about_the_compilers():
    f, args = roofline.step(cases.CASES["mnist_mlp"], "cached")
    found = jax.jit(f).lower(*args).compile().cost_analysis()
    parts = roofline.launches(jaxpr.trace(f, *args))
    flops, moved = (sum(numbers) for numbers in zip(*parts, strict=True))
    assert flops < found["flops"] < 1.5 * flops  # with elementwise operations
    assert moved < found["bytes accessed"] < 3 * moved  # less is fused on a CPU


@pytest.mark.bad_input
def test_the_roofline_names_its_cases():
    with pytest.raises(SystemExit, match="no case 'resnet9'; there are"):
        roofline.main(roofline.Config(names=("resnet9",)))


# What was asked for


@pytest.mark.bad_input
@pytest.mark.parametrize("bench", [step_speed, cache])
def test_the_benches_name_what_is_wrong(bench):
    with pytest.raises(SystemExit, match="no experiment 'resnet9'; there are"):
        bench.main(bench.Config(experiments=("resnet9",)))
    for name in ("steps", "batch_size", "repeats"):
        with pytest.raises(SystemExit, match=f"{name} must be >= 1, got 0"):
            bench.main(bench.Config(experiments=("mnist_mlp",), **{name: 0}))


def test_numbers_of_the_command_line_go_before_the_presets():
    config = step_speed.Config(preset="short", steps=7)
    chosen = cases.chosen(config)
    assert list(chosen) == ["mnist_mlp", "resnet32x4-resnet8x4"]
    assert all(case["steps"] == 7 for case in chosen.values())
    assert chosen["resnet32x4-resnet8x4"]["batch_size"] == 8  # the preset's
    assert cases.CASES["resnet32x4-resnet8x4"]["batch_size"] == 64  # not changed


@pytest.mark.slow
def test_a_pair_of_the_zoo_runs_in_half_precision():
    config = step_speed.Config(
        preset="short",
        experiments=("resnet32x4-resnet8x4",),
        teachers=("live",),
        modes=("scan",),
        dtype="bfloat16",
        batch_size=2,
        repeats=1,
    )
    (row,) = step_speed.main(config)
    assert row["dtype"] == "bfloat16" and math.isfinite(row["ms_per_step"])
    assert np.isclose(
        row["gflop_per_step"],
        cases.flops(cases.CIFAR["resnet32x4-resnet8x4"] | {"batch_size": 2}, "live")
        / 1e9,
        atol=1e-3,
    )
