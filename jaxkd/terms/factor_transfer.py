"""Paraphrasing complex networks: factor transfer (Kim, Park & Kwak, 2018)."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxkd import _check, losses
from jaxkd.distill import Term, fitting
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.terms import _pairs
from jaxkd.terms._given import given
from jaxkd.terms.adapters import resize
from jaxkd.types import Batch, Outputs, Params, State

Map = Float[Array, "batch height width channels"]


class Coder(nn.Module):
    """3x3 convolutions at stride 1, each followed by LeakyReLU(0.1).

    Attributes:
      widths: channels after each.
      norm: whether a BatchNorm comes before the activation, always with the statistics
        of the batch.
    """

    widths: tuple[int, ...]
    norm: bool = False

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Maps of the same size."""
        for i, width in enumerate(self.widths, start=1):
            x = nn.Conv(
                width,
                (3, 3),
                use_bias=not self.norm,
                conv_general_dilated=conv_general_dilated,
                name=f"conv{i}",
            )(x)
            if self.norm:
                x = nn.BatchNorm(
                    use_running_average=False, momentum=0.9, name=f"norm{i}"
                )(x)
            x = nn.leaky_relu(x, 0.1)
        return x


def _widths(channels: int, factors: int) -> tuple[int, int, int]:
    """From a map to its factor, in three steps."""
    return channels, factors, factors


def _is_map(**maps: Array) -> None:
    for name, features in maps.items():
        if features.ndim != 4:
            raise ValueError(
                f"{name} must be a map [batch, height, width, channels], got "
                f"{features.shape}"
            )


def paraphraser(tap: str, *, rate: float = 0.5) -> Term:
    """Return an autoencoder of the teacher's map, for a first stage of its own.

    With E and D three convolutions each::

        loss = mean_u (D(E(t))_u - t_u)**2

    Weight 1, with no other term beside it: the student gets no gradient, and any will
    do. What `factor_transfer` needs afterwards is
    `state.params["terms"]["paraphraser"]`, for a term of that name.

    The authors' decoder is of transposed convolutions. At stride 1 and kernel 3 these
    are plain convolutions with the kernel turned round, which are used here: the same
    functions. There is no BatchNorm in it, so that all its variables are parameters.

    Args:
      tap: the teacher's map, usually the last stage.
      rate: channels of the factor as a share of the map's, > 0; the authors use 0.5 to
        0.75 on CIFAR.

    Returns:
      The term. It has parameters "encoder" and "decoder" and no state.

    References:
      Kim, Park, Kwak. `Paraphrasing Complex Network: Network Compression via Factor
      Transfer <https://arxiv.org/abs/1802.04977>`_, NeurIPS 2018. Equation 1.
    """
    _check.positive("rate", rate)

    def coders(t: Outputs) -> tuple[Any, Any]:
        channels = t.tap(tap).shape[-1]
        factors = int(rate * channels)
        if factors < 1:
            raise ValueError(
                f"rate must leave one of {channels} channels or more, got {rate}"
            )
        return Coder(_widths(channels, factors)), Coder((factors, channels, channels))

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        _is_map(teacher=t.tap(tap))
        encoder, decoder = coders(t)
        encoder_key, decoder_key = jax.random.split(key)
        factor, made = encoder.init_with_output(encoder_key, t.tap(tap))
        params = {
            "encoder": made["params"],
            "decoder": decoder.init(decoder_key, factor)["params"],
        }
        return params, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        encoder, decoder = coders(t)
        factor = encoder.apply({"params": params["encoder"]}, t.tap(tap))
        again = decoder.apply({"params": params["decoder"]}, factor)
        return losses.hint(again, t.tap(tap)), state

    return fitting(Term(init, apply))


def factor_transfer(pair: _pairs.Pairs, *, paraphraser: Any) -> Term:
    """Distance of the normalised factors of two maps, `losses.factor_transfer`.

    With E the trained, frozen encoder of a `paraphraser` and R a translator of the
    same form (its convolutions each followed by BatchNorm)::

        loss = mean_u abs(R(s)_u / |R(s)| - E(t)_u / |E(t)|)

    The authors' weight is 200 and above, beside a cross-entropy of weight 1. A
    student's map of another size is resized before the translator.

    Args:
      pair: the two maps; the teacher's is the one the paraphraser was trained on.
      paraphraser: its trained parameters, arrays or only their shapes; the encoder is
        kept in the state and never moved.

    Returns:
      The term. Its parameters are the translator's; its state is the encoder and the
      translator's batch statistics.

    Raises:
      ValueError: if `pair` is several, or `paraphraser` has no encoder; at `init`, if
        it was trained on a map of another number of channels.

    References:
      Kim, Park, Kwak. `Paraphrasing Complex Network: Network Compression via Factor
      Transfer <https://arxiv.org/abs/1802.04977>`_, NeurIPS 2018. Equation 2.
    """
    student, teacher = _pairs.one(pair)
    try:
        kernels = [paraphraser["encoder"][f"conv{i}"]["kernel"] for i in (1, 2, 3)]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "paraphraser must be the parameters of a trained terms.paraphraser, got "
            f"{jax.tree.map(lambda leaf: leaf.shape, paraphraser)}"
        ) from error
    encoder: Any = Coder(tuple(kernel.shape[-1] for kernel in kernels))
    factors = encoder.widths[-1]

    def translator(s: Outputs) -> Coder:
        return Coder(_widths(s.tap(student).shape[-1], factors), norm=True)

    def resized(s: Outputs, t: Outputs) -> Map:
        return resize(s.tap(student), t.tap(teacher).shape[1:-1])

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        _is_map(student=s.tap(student), teacher=t.tap(teacher))
        channels = t.tap(teacher).shape[-1]
        if kernels[0].shape[2] != channels:
            raise ValueError(
                f"paraphraser was trained on {kernels[0].shape[2]} channels, the "
                f"teacher's {teacher!r} has {channels}"
            )
        statistics = dict(translator(s).init(key, resized(s, t)))
        params = statistics.pop("params")
        encoder = given(paraphraser["encoder"])
        return params, {"encoder": encoder, "translator": statistics}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        of_student, moved = translator(s).apply(
            {"params": params, **state["translator"]},
            resized(s, t),
            mutable=["batch_stats"],
        )
        of_teacher = encoder.apply({"params": state["encoder"]}, t.tap(teacher))
        loss = losses.factor_transfer(of_student, of_teacher)
        return loss, {**state, "translator": dict(moved)}

    return fitting(Term(init, apply))
