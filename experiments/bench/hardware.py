"""What the benches ask of a device: its peak, its memory, compilation from nothing."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
# Peak FLOP/s of one device in bfloat16 with float32 sums, dense, as its maker states
# it, and where. NVIDIA's pages for Hopper give twice as much, "with sparsity". The V100
# knows no bfloat16: its number is float16's.
PEAKS: dict[str, tuple[float, str]] = {
    "TPU v4": (275e12, _TPU + "v4"),
    "TPU v5 lite": (197e12, _TPU + "v5e"),
    "TPU v5e": (197e12, _TPU + "v5e"),
    "TPU v5": (459e12, _TPU + "v5p"),
    "TPU v5p": (459e12, _TPU + "v5p"),
    "TPU v6 lite": (918e12, _TPU + "v6e"),
    "TPU v6e": (918e12, _TPU + "v6e"),
    "H100 PCIe": (756e12, _NVIDIA + "h100/"),
    "H100 NVL": (835e12, _NVIDIA + "h100/"),
    "H100": (989e12, _NVIDIA + "h100/"),  # SXM
    "H200 NVL": (835e12, _NVIDIA + "h200/"),
    "H200": (989e12, _NVIDIA + "h200/"),  # SXM
    "A100": (312e12, _NVIDIA + "a100/"),
    "V100-PCIE": (112e12, _NVIDIA + "v100/"),
    "V100": (125e12, _NVIDIA + "v100/"),  # SXM2
}
MIB = 2**20


def kind() -> str:
    """The name of the device that programs run on by default."""
    return jax.devices()[0].device_kind


def peak(device_kind: str) -> float | None:
    """FLOP/s that a device's maker states for bfloat16; None for one not listed.

    >>> peak("NVIDIA H100 80GB HBM3") == 989e12 and peak("NVIDIA H100 PCIe") == 756e12
    True
    >>> peak("cpu") is peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    True
    """
    if device_kind.startswith("TPU"):  # whole names: "TPU v4 lite" is another chip
        return PEAKS.get(device_kind, (None,))[0]
    if " MIG " in device_kind:  # a part of the chip
        return None
    found = (n for n in PEAKS if re.search(rf"\b{re.escape(n)}\b", device_kind))
    return next((PEAKS[name][0] for name in found), None)


def memory_limit() -> int:
    """Bytes that programs may use: the device's own, or the host's for a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    lines = pathlib.Path("/proc/meminfo"), pathlib.Path("/sys/fs/cgroup/memory.max")
    found = [re.search(r"\d+", path.read_text()) for path in lines if path.exists()]
    scales = (1024, 1)  # the first is in KiB, the second "max" where nothing limits
    limits = [
        scale * int(number[0])
        for scale, number in zip(scales, found, strict=False)
        if number
    ]
    return min(limits, default=2**63 - 1)


def require(needed: int, what: str) -> None:
    """Refuses what cannot fit before it is tried: a CPU's program would be killed.

    Raises:
      MemoryError: if it needs more bytes than `memory_limit`.
    """
    if needed > (limit := memory_limit()):
        raise MemoryError(
            f"{what} needs {needed / MIB:,.0f} MiB of memory, there are "
            f"{limit / MIB:,.0f} MiB"
        )


@contextlib.contextmanager
def fitting(failures: dict[Any, str], name: Any) -> Iterator[None]:
    """Notes under `name` that memory ran out; any other error goes through."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        ran_out = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not ran_out:
            raise
        failures[name] = f"does not fit: {str(error).splitlines()[0]}"


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Compilations inside are made anew: the persistent cache is neither read nor kept.

    XLA still remembers, within a process, how it tuned an operation on a GPU.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else the answer to "is it used?" is remembered
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


class Memory(NamedTuple):
    """Bytes of a compiled program.

    Attributes:
      arguments: what goes in: for an epoch the state, the teacher and the whole data.
      temporaries: what it holds beside its inputs and outputs.
      peak: all it holds: inputs, outputs that are not in donated inputs, temporaries
        and code.
    """

    arguments: int
    temporaries: int
    peak: int


def memory(compiled: Any) -> Memory | None:
    """What the compiler says a program will hold; None where it does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    own = stats.output_size_in_bytes - stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    held = stats.argument_size_in_bytes + own + stats.temp_size_in_bytes + code
    return Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, held)
