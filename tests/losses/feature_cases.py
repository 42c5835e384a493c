"""The feature and relational losses, as the battery sees them."""

from tests.losses.cases import Case

CASES: list[Case] = []
