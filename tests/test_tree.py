"""Paths over trees, and choosing leaves by pattern."""

import numpy as np
import pytest

from jaxkd import _tree

TREE = {
    "head": {"bias": np.zeros(2), "kernel": np.ones((3, 2))},
    "stage1": {"block": {"kernel": np.ones(4)}},
}


def test_flatten_names_every_leaf_in_order():
    assert list(_tree.flatten(TREE)) == [
        "head/bias",
        "head/kernel",
        "stage1/block/kernel",
    ]
    assert list(_tree.flatten((1, [2, {"a": 3}]))) == ["0", "1/0", "1/1/a"]


def test_map_with_path_keeps_the_structure():
    named = _tree.map_with_path(lambda path, a, b: (path, a is b), TREE, TREE)
    assert named["stage1"]["block"]["kernel"] == ("stage1/block/kernel", True)


def test_get_finds_subtrees_and_leaves():
    assert _tree.get(TREE, "head") is TREE["head"]
    assert _tree.get(TREE, "head/kernel") is TREE["head"]["kernel"]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ("*", {"head/bias", "head/kernel", "stage1/block/kernel"}),
        ("head/*", {"head/bias", "head/kernel"}),
        ("*/kernel", {"head/kernel", "stage1/block/kernel"}),
        (["head/bias", "stage1*"], {"head/bias", "stage1/block/kernel"}),
    ],
)
def test_mask_chooses_by_glob(patterns, chosen):
    found = _tree.flatten(_tree.mask(TREE, patterns))
    assert {path for path, yes in found.items() if yes} == chosen


@pytest.mark.bad_input
def test_what_is_not_there_gets_its_neighbour():
    with pytest.raises(KeyError, match="nothing at 'haed/kernel'.*head/kernel"):
        _tree.get(TREE, "haed/kernel")
    with pytest.raises(ValueError, match=r"'Head/\*' fits no parameter.*head/"):
        _tree.mask(TREE, ["*/kernel", "Head/*"])
