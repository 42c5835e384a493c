"""Losses of reference implementations, run in float64: values and gradients.

The file holds inputs under `in/NAME` (maps channels first), each reference's value
under its name and its gradients under `NAME/dINPUT`. `JAXKD_GOLDENS` names another file
of the same form, with other inputs and another number of examples.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

HERE = pathlib.Path(__file__).parents[1] / "goldens" / "kd_goldens.npz"
FILE = pathlib.Path(os.environ.get("JAXKD_GOLDENS", HERE))
with np.load(FILE) as opened:
    GOLDENS = {name: opened[name] for name in opened.files}
INPUTS = {n.removeprefix("in/"): a for n, a in GOLDENS.items() if n.startswith("in/")}
KEYS = sorted(name for name in GOLDENS if "/" not in name)
RTOL = 1e-9
# Of programs that go through float32, or add something to a denominator.
LOOSER = {"wkd_l_T2_g30": 5e-5}


def last(features):
    """Channels first to channels last."""
    return jnp.moveaxis(features, 1, -1)


def units(features):
    """The number of units of an example."""
    return features[0].size


def on_maps(loss, student, teacher, **knobs):
    """The mean of a loss of two feature maps, by the names of the inputs."""
    return lambda i: loss(last(i[student]), last(i[teacher]), **knobs).mean()


def on(loss, student, teacher, **knobs):
    """The mean of a loss of two matrices, by the names of the inputs."""
    return lambda i: loss(i[student], i[teacher], **knobs).mean()


def on_labels(loss, **knobs):
    """The mean of a loss of logits and labels."""
    return lambda i: loss(i["zs"], i["zt"], i["y"], **knobs).mean()


def total(*parts):
    """The sum of (weight, loss)."""
    return lambda i: sum(weight * part(i) for weight, part in parts)


def fsp(i):
    """Two layers of each network."""
    return losses.fsp(*(last(i[name]) for name in ("s0", "s1", "t0", "t1"))).mean()


def attention_factor(i):
    """Factor transfer on maps whose squared channels are averaged first."""
    s, t = (jnp.mean(last(i[name]) ** 2, -1, keepdims=True) for name in ("s1", "tc"))
    return losses.factor_transfer(s, t).mean()


def frobenius_cc(i):
    """The Frobenius norm over B**2, where the paper has its square."""
    batch = len(i["es"])
    mean_square = losses.cc(i["es"], i["et"]).mean()
    return jnp.sqrt(mean_square * batch**2) / batch**2


def ickd_over_batch(i):
    """The program divides by the number of examples twice."""
    return losses.ickd(last(i["s1"]), last(i["t1"])).mean() / len(i["s1"])


def layered_ab(i):
    """Sums over units; each earlier layer weighs half; times 3, over 1000."""
    first = losses.ab(last(i["s0"]), last(i["t0"])).mean() * units(i["s0"])
    second = losses.ab(last(i["p_s"]), last(i["p_t"])).mean() * units(i["p_s"])
    return 3 * (first / 2 + second) / 1000


def srrl(i):
    """Hints on globally averaged features, and logits at weight 5."""
    pooled = losses.hint(i["s1"].mean((2, 3)), i["t1"].mean((2, 3))).mean()
    return pooled + 5 * losses.logit_mse(i["zs"], i["zt"]).mean()


def ofd(i):
    """One margin for each channel."""
    s, t = last(i["p_s"]), last(i["p_t"])
    return losses.ofd(s, t, i["margin"].ravel()).mean()


def dml(i):
    """One peer."""
    return losses.mutual(i["zs"], i["zt"][None]).mean()


def sdd(i):
    """Two maps as logits at each position; their channels are the classes."""
    s, t = last(i["s1"]), last(i["t1"])
    return losses.sdd(s, t, i["y"] % s.shape[-1], scales=(1, 2)).mean()


def wkd(i):
    """Costs that grow with the distance of the classes' numbers."""
    classes = np.arange(i["zs"].shape[-1])
    apart = np.abs(np.subtract.outer(classes, classes))
    cost = 1 - np.exp(-apart / len(classes))
    knobs = {"gamma": 30, "temperature": 2, "epsilon": 0.05, "iterations": 10}
    return losses.wkd_logits(i["zs"], i["zt"], i["y"], cost, **knobs).mean()


rkd_d = on(losses.rkd_distance, "es", "et24")
rkd_a = on(losses.rkd_angle, "es", "et24")

OFFERED = {
    "rep_KD_T4": lambda i: losses.kd(i["zs"], i["zt"], temperature=4).mean(),
    "rep_AT": total(
        (1, on_maps(losses.at, "s0", "t0")), (1, on_maps(losses.at, "s1", "t1"))
    ),
    "td_at_code": on_maps(losses.at, "s1", "tc"),
    "td_at_paper": on_maps(losses.at, "s1", "tc", variant="paper"),
    "rep_SP": on_maps(losses.sp, "s1", "tc"),
    "rep_RKD": total((25, rkd_d), (50, rkd_a)),
    "rep_RKD_D": rkd_d,
    "rep_RKD_A": rkd_a,
    "rep_PKT": on(losses.pkt, "es", "et24"),
    "rep_AB": layered_ab,
    "rep_FT": attention_factor,
    "rep_FSP": fsp,
    "kdzoo_fsp": fsp,
    "rep_NST": on_maps(losses.nst, "s1", "tc"),
    "mdist_hcl": total(
        (1, on_maps(losses.hcl, "s0", "t0")), (1, on_maps(losses.hcl, "p_s", "p_t"))
    ),
    "mdist_ofd_featloss": ofd,
    "wkd_feature_mean": on_maps(
        losses.wasserstein_features, "s1", "t1", deviation_weight=0
    ),
    "wkd_feature_std": on_maps(losses.wasserstein_features, "s1", "t1", mean_weight=0),
    "wkd_srrl": srrl,
    "td_ft_p1": on_maps(losses.factor_transfer, "s1", "t1"),
    "td_cckd_gauss": frobenius_cc,
    "kdzoo_cc": on(losses.cc, "es", "et"),
    "td_chsim": ickd_over_batch,
    "kdzoo_ab": on_maps(losses.ab, "p_s", "p_t", margin=2),
    "cwd_tau1": on_maps(losses.cwd, "s1", "t1"),
    "mdist_dkd_a1_b8": on_labels(losses.dkd, alpha=1, beta=8, temperature=4),
    "mdist_dkd_tckd": on_labels(losses.dkd, alpha=1, beta=0, temperature=4),
    "mdist_dkd_nckd": on_labels(losses.dkd, alpha=0, beta=1, temperature=4),
    "dist_tau1": on(losses.dist, "zs", "zt", temperature=1),
    "dist_tau4": on(losses.dist, "zs", "zt", temperature=4),
    "ttm_g0.2": on(losses.ttm, "zs", "zt", gamma=0.2),
    "wttm_g0.2": on(losses.wttm, "zs", "zt", gamma=0.2),
    "lskd_T2": on(losses.lskd, "zs", "zt", temperature=2),
    "mlkd_cc_T4": on(losses.mlkd_class, "zs", "zt", temperature=4),
    "mlkd_bc_T4": on(losses.mlkd_batch, "zs", "zt", temperature=4),
    "nkd_T1_g1.5": on_labels(losses.nkd, gamma=1.5, temperature=1),
    "rld_a1_b8_T4": on_labels(losses.rld, alpha=1, beta=8, temperature=4),
    "trl_gjsd_b0": on(losses.kd, "zs", "zt", temperature=1),
    "trl_gjsd_b0.1": on(losses.jsd, "zs", "zt", beta=0.1),
    "trl_gjsd_b0.5": on(losses.jsd, "zs", "zt", beta=0.5),
    "trl_gjsd_b0.9": on(losses.jsd, "zs", "zt", beta=0.9),
    "trl_gjsd_b1": on(losses.reverse_kd, "zs", "zt", temperature=1),
    "trl_gjsd_b0_T4": total((1 / 16, on(losses.kd, "zs", "zt", temperature=4))),
    "kdzoo_dml": dml,
    "ofa_e1.5": on_labels(losses.ofa, gamma=1.5, temperature=1),
    "sdd_kd_T4": sdd,
    "wkd_l_T2_g30": wkd,
}

NOT_OFFERED = {
    "rep_CC": "because it sums products of neighbouring examples' differences, "
    "which is not the paper's kernel",
    "rep_KDSVD": "because it differs between repositories, and its gradient jumps "
    "where singular values meet",
    "td_spkd": "because it divides rows by their L1 norm; the paper's norm is L2",
    "td_fsp": "because it pools by the maximum and adds norms where the paper has "
    "mean squares",
}


@functools.cache
def graded(key):
    """The compiled value of a loss and its gradients for some of the inputs."""
    loss = lambda moved, inputs: OFFERED[key]({**inputs, **moved})
    # Compiling is nearly all that these tests do; test_battery.py optimises more.
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss), compiler_options=fast)


def assert_reproduces(goldens, key, inputs):
    """The value and every gradient of one reference."""
    gradients = [n for n in goldens if n.startswith(f"{key}/d")]
    assert gradients, f"{key} comes without a gradient"
    names = [n.removeprefix(f"{key}/d") for n in gradients]
    value, got = graded(key)({n: inputs[n] for n in names}, inputs)
    rtol = LOOSER.get(key, RTOL)
    np.testing.assert_allclose(value, goldens[key], rtol=rtol)
    for name in names:
        want = goldens[f"{key}/d{name}"]
        np.testing.assert_allclose(
            got[name], want, rtol=0, atol=rtol * np.max(np.abs(want)), err_msg=name
        )


def of_examples(index):
    """The inputs of some of the examples; a margin belongs to the channels."""
    return {n: a if n == "margin" else a[index] for n, a in INPUTS.items()}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.usefixtures("x64")
def test_reproduces_the_reference(key):
    if key in NOT_OFFERED:
        assert NOT_OFFERED[key].startswith("because ")
    else:
        assert key in OFFERED, f"{key} is neither called nor said to be left out"
        assert_reproduces(GOLDENS, key, INPUTS)


def test_every_entry_has_its_reference():
    assert not OFFERED.keys() & NOT_OFFERED.keys()
    assert (OFFERED.keys() | NOT_OFFERED.keys()) == set(KEYS)


def test_every_reference_names_its_source():
    description = FILE.with_suffix(".json")
    if FILE != HERE and not description.exists():
        pytest.skip("a file of one's own needs no description")
    described = json.loads(description.read_text())
    assert set(described) == set(KEYS)
    for key, entry in described.items():
        assert entry["source"]
        assert {f"{key}/d{name}" for name in entry["student"]} == {
            name for name in GOLDENS if name.startswith(f"{key}/d")
        }


def permuted():
    """All of the file with its examples in another order."""
    order = np.random.default_rng(0).permutation(len(INPUTS["zs"]))
    inputs = {f"in/{name}": array for name, array in of_examples(order).items()}
    references = {
        name: array[order] if "/" in name else array
        for name, array in GOLDENS.items()
        if not name.startswith("in/")
    }
    return {**inputs, **references}


@pytest.mark.parametrize("key", sorted(OFFERED))
@pytest.mark.usefixtures("x64")
def test_nothing_depends_on_the_order_of_examples(key):
    moved = permuted()
    assert_reproduces(moved, key, {name: moved[f"in/{name}"] for name in INPUTS})


# Those that count the examples here; of the losses test_battery.py asks it.
@pytest.mark.parametrize("key", ["rep_AB", "rep_FSP", "td_cckd_gauss", "td_chsim"])
@pytest.mark.usefixtures("x64")
def test_takes_another_number_of_examples(key):
    value, _ = graded(key)({}, of_examples(slice(1, None)))
    assert np.isfinite(value)
    assert not np.isclose(value, GOLDENS[key], rtol=1e-6, atol=0)


def test_another_file_is_read(tmp_path):
    right, wrong, unknown = "trl_gjsd_b0.5", "td_at_code", "nobody's"
    mine = {
        name: array
        for name, array in permuted().items()
        if name.split("/")[0] in ("in", right, wrong)
    }
    mine[wrong] = mine[wrong] * (1 + 1e-6)
    file = tmp_path / "mine.npz"
    np.savez(file, **mine, **{unknown: np.zeros(())})
    test = f"{__file__}::test_reproduces_the_reference"
    plain = ["-rA", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", test, *plain],
        env={**os.environ, "JAXKD_GOLDENS": str(file)},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = re.findall(r"^(PASSED|FAILED) \S+\[(.+?)\]", done.stdout, re.MULTILINE)
    assert sorted(outcomes) == [
        ("FAILED", unknown),
        ("FAILED", wrong),
        ("PASSED", right),
    ], done.stdout
    assert f"{unknown} is neither called nor said to be left out" in done.stdout
