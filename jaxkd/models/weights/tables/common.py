"""What the tables share."""

from jaxkd.models.weights.rules import Rule

BLOCK = "stage{i}_block{j}"


def conv_norm(ours: str, conv: str, norm: str, optional: bool = False) -> list[Rule]:
    """Two rules, for `{}conv{}` and `{}norm{}` in the place of "@"."""
    return [
        Rule(ours.replace("@", "conv"), conv, optional),
        Rule(ours.replace("@", "norm"), norm, optional),
    ]
