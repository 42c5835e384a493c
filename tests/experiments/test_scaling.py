"""The weak-scaling bench: what it reads from a program, and a run on two devices."""

import json

import pytest

from experiments.bench import scaling

PROGRAM = """
ENTRY %main_spmd (p0: f32[8,3]) -> f32[] {
  %p0 = f32[8,3]{1,0} parameter(0)
  %g = (f32[16,3]{1,0}, bf16[4]{0}, pred[5]{0}) all-reduce(%a, %b, %c), channel_id=1
  %x = f32[32,3]{1,0} all-gather(%p0), channel_id=2, dimensions={0}
  %s = (f32[8,3]{1,0}, f32[32,3]{1,0}) all-gather-start(%p0), channel_id=3
  %d = f32[32,3]{1,0} all-gather-done(%s)
  %r = f32[]{} all-reduce-start(%n), channel_id=4, to_apply=%add
  %e = (u8[2]{0}, /*index=1*/s64[]) all-to-all(%u, %v), channel_id=5
  %z = f8e4m3fn[6]{0} collective-permute(%q), channel_id=6
  ROOT %all-reduce.9 = f32[] get-tuple-element(%g), index=0
}
"""


def test_collectives_and_their_bytes():
    assert list(scaling.collectives(PROGRAM)) == [
        ("all-reduce", 16 * 3 * 4 + 4 * 2 + 5),
        ("all-gather", 32 * 3 * 4),
        ("all-gather", 32 * 3 * 4),  # begun; its end is not a second one
        ("all-reduce", 4),
        ("all-to-all", 2 + 8),
        ("collective-permute", 6),
    ]


@pytest.mark.slow
def test_a_step_costs_each_device_the_same(capsys):
    config = scaling.Config(
        pair="mnist_mlp",
        devices=(2,),
        compile_only=(1, 4),
        batch_size=4,
        images=16,
        relational=False,
    )
    two, one, four = scaling.main(config)
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert rows == [two, one, four]
    assert "one step of mnist_mlp, per device" in printed
    assert [row["batch_size"] for row in rows] == [8, 4, 16]
    assert one["collectives"] == {} and one["collective_bytes"] == 0
    # The gradients, once, and three means: of two losses and their sum, or fewer.
    student = 4 * (784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10)
    for row in (two, four):
        assert row["collectives"] == {"all-reduce": 1}
        assert student < row["collective_bytes"] <= student + 3 * 4
        assert row["mflops"] == pytest.approx(one["mflops"], rel=0.02)
    assert four["argument_bytes"] == pytest.approx(one["argument_bytes"], rel=0.001)
    assert four["temporary_bytes"] == pytest.approx(two["temporary_bytes"], rel=0.01)
    assert 0 < two["loss"] < 10 and "loss" not in one and "loss" not in four


@pytest.mark.bad_input
def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="pair must be one of .* got 'resnet9'"):
        scaling.main(scaling.Config(pair="resnet9"))
    config = scaling.Config(devices=(1, 512), simulate=False)
    with pytest.raises(ValueError, match="devices must be at most"):
        next(scaling.here(config))
