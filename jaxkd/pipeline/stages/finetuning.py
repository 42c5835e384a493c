"""finetune: a model that has weights, further."""

from typing import Annotated, ClassVar

from jaxkd import transfer
from jaxkd.models.net import Net
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import about
from jaxkd.pipeline.stages.training import Taught


class Finetune(Taught, frozen=True, kw_only=True, tag="finetune", tag_field="kind"):
    """A model that has weights, further."""

    frozen_statistics: Annotated[
        bool, about("BatchNorm keeps its stored statistics")
    ] = False

    needs_weights: ClassVar = True

    def network(self, held: Model) -> Net:
        """Return the network, its statistics frozen if asked for."""
        if self.frozen_statistics:
            return transfer.frozen_statistics(held.net)
        return held.net
