"""Recipes of features fit unlike networks of the zoo, stage by stage."""

import jax
import numpy as np
import pytest

from jaxkd import models, recipes
from jaxkd.recipes import _taps

PAIRS = [("mobilenet_v2", "vgg8"), ("shufflenet_v1", "resnet8x4")]


def pair_of(student, teacher, size=32):
    batch = {"image": jax.ShapeDtypeStruct((2, size, size, 3), np.float32)}
    nets = [models.ZOO[name](classes=100) for name in (student, teacher)]
    variables = jax.eval_shape(nets[1].init, jax.random.key(0), batch["image"])
    return nets[0], (nets[1], variables), batch


@pytest.mark.parametrize("pair", PAIRS)
def test_stages_are_matched_by_the_size_of_their_maps(pair):
    student, teacher, batch = pair_of(*pair)
    alike = _taps.match_stages(student, teacher, batch)
    s, t = _taps.outputs(student, teacher, batch)
    assert alike
    for name, other in alike.items():
        assert s.taps[name].shape[1:3] == t.taps[other].shape[1:3]


@pytest.mark.parametrize(
    "name", ["hint", "at", "vid", "ofd", "reviewkd", "ickd", "srrl", "fsp", "ab"]
)
def test_recipes_fit_networks_of_other_widths_and_depths(name):
    # Traced only: nothing is compiled.
    student, teacher, batch = pair_of("resnet8", "wrn_16_2")
    recipe = recipes.build(name, student, teacher, batch)
    s, t = _taps.outputs(student, teacher, batch)
    for stage in recipe.stages:
        for term in [term for key, (_, term) in stage.spec.items() if key != "ce"]:
            params, state = jax.eval_shape(
                term.init, jax.random.key(0), s, t, {**batch}
            )
            loss, _ = jax.eval_shape(term.apply, params, state, s, t, batch)
            assert loss.shape == (2,)
