"""LiteRT (.tflite): StableHLO through Google's converter, without TensorFlow."""

import contextlib
import functools
import io
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxkd import _check
from jaxkd.compress.quantize import Quantization
from jaxkd.export import census, files, network, program
from jaxkd.export.write import Asked, Content, Report, write
from jaxkd.models.net import Net
from jaxkd.types import Params, State

MAGIC = b"TFL3"  # at byte 4, the flatbuffer's own
RECIPES = {"dynamic": "dynamic_wi8_afp32", "weight_only": "weight_only_wi8_afp32"}


def tflite(
    net: Net,
    params: Params,
    state: State,
    path: str | os.PathLike,
    *,
    quantize: Quantization | str | None = None,
    batch: int = 1,
    **options: Any,
) -> Report:
    """Writes a network as a .tflite file, for phones and microcontrollers.

    A network from `compress.quantize.quantized` is written in int8; where both
    operands of every product are quantized, so must all the rest be. Images and logits
    are float32 at the edges. The file is there only if LiteRT computes with it what
    the network does, up to `tolerance` or `steps`.

    Args:
      net: a network, quantized or not; any function of images by `export.function`.
      params: its parameters; they become constants.
      state: its state, calibrated or trained if it is quantized.
      path: of the file, in a directory that exists; replaced if it is there.
      quantize: the configuration that `net` was quantized with; it is known from the
        network, and given only to be sure. Of a network in float, "dynamic" stores
        int8 kernels and quantizes activations by their range in each call;
        "weight_only" stores int8 kernels and computes in float.
      batch: how many images a call takes.
      **options: `inputs` or `image_shape`, `name`, `classes`, `float_ops`,
        `tolerance`, `steps` and `measure`, as in `write.options`.

    Returns:
      What was written. Operations of int8 kernels and float activations, which LiteRT
      quantizes on the way, count as integer with "(hybrid)" after their name.

    Raises:
      ImportError: without the packages of the extra `litert`.
      NotImplementedError: if LiteRT's converter does not take an operation.
      ValueError: if the file differs from the network by more than the limit; if a
        weight or input is not finite; if anything of a quantized network stays in
        float that `float_ops` does not allow; if `quantize` does not fit the network.
      FileNotFoundError: if there is no directory to write to.

    References:
      LiteRT 8-bit quantization specification.
      https://ai.google.dev/edge/litert/models/quantization_spec
    """
    recipe = quantize if isinstance(quantize, str) else None
    if recipe is not None:
        _check.one_of(*RECIPES)("quantize", recipe)

    def emit(closed: Any, asked: Asked) -> Content:
        for package in ("litert_converter", "ai_edge_litert"):
            files.optional(package, "litert")
        marked = any(True for _ in census.fake_quants(closed))
        if marked and recipe is not None:
            raise ValueError(
                f"quantize={recipe!r} is for a network in float, and net is quantized: "
                "leave it out"
            )
        plain = jax.jit(functools.partial(program.call, uneven(closed)))
        exported = jax.export.export(plain, platforms=["cpu"])
        image = jax.ShapeDtypeStruct(closed.in_avals[0].shape, np.float32)
        with program.without_locations():
            blob = convert(exported(image), strict=marked)
        if recipe is not None:
            blob = rounded(blob, RECIPES[recipe])
        notes = files.notes("tflite", asked.image_shape, batch, *asked[3:5])
        blob = with_notes(blob, notes)
        return Content(blob, count(blob), recipe is not None)

    return write(
        "tflite",
        net,
        params,
        state,
        path,
        function_of=network.as_marked,
        emit=emit,
        quantize=None if isinstance(quantize, str) else quantize,
        target="litert",
        batch=batch,
        **options,
    )


def uneven(closed: Any) -> Any:
    """A program without biases that are the same number in every channel.

    The converter stores such a constant as one number and quantizes it with the scale
    of the first channel alone. One channel's number is therefore moved to the next
    float32.
    """
    added = {v for e in closed.jaxpr.eqns if e.primitive.name == "add" for v in e.invars
             if not hasattr(v, "val")}  # fmt: skip
    consts = []
    for variable, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        if variable in added and np.size(const) > 1 and np.ptp(const) == 0:
            const = np.array(const)
            const.flat[0] = np.nextafter(const.flat[0], 2 * const.flat[0])
        consts.append(const)
    return closed.replace(consts=consts)


def convert(exported: Any, strict: bool) -> bytes:
    """The one place that knows litert-converter's young interface (0.5).

    Args:
      exported: from `jax.export`.
      strict: lower marked values to integers throughout.
    """
    api = files.optional("litert_converter.converter_api_ext", "litert")
    ir = files.optional("litert_converter.mlir.ir", "litert")
    passmanager = files.optional("litert_converter.mlir.passmanager", "litert")
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        api.set_signature(
            module.operation,
            signature_name="serving_default",
            input_names=["image"],
            output_names=["logits"],
        )
        config = api.ConvertToTFLConfig()
        config.strict_qdq_mode = strict
        try:
            api.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
            return bytes(api.export_flatbuffer_to_bytes(module.operation))
        except Exception as error:  # of several types, with MLIR's own text
            raise NotImplementedError(_refusal(str(error))) from error


def _refusal(text: str) -> str:
    """What a failure of the converter means, with operation and module if known."""
    named = re.search(r"failed to legalize operation '([\w.]+)'", text)
    what = f"the operation {named[1]}" if named else "an operation"
    at, first = re.search(r'loc\("([^"]+)"\)', text), text.split("\n")[0][:300]
    where = "in this network"
    if at is not None:
        where = f"({at[1].rpartition('/')[2]} in {census.place(at[1])})"
    return (
        f"LiteRT's converter has no form of {what} {where}: write it as onnx or "
        f"stablehlo, or use another operation in its place. It says: {first}"
    )


def rounded(blob: bytes, recipe: str) -> bytes:
    """A float file with int8 kernels, by a recipe of ai-edge-quantizer."""
    quantizer = files.optional("ai_edge_quantizer.quantizer", "litert")
    recipes = files.optional("ai_edge_quantizer.recipe", "litert")
    made = quantizer.Quantizer(bytearray(blob), getattr(recipes, recipe)())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints sizes, as we do
        return bytes(made.quantize().quantized_model)


def _schema() -> Any:
    return files.optional("ai_edge_litert.schema_py_generated", "litert")


def _model(blob: bytes) -> Any:
    schema = _schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))


def with_notes(blob: bytes, notes: str) -> bytes:
    """The file with the notes among its metadata."""
    flatbuffers, schema = files.optional("flatbuffers", "litert"), _schema()
    model = _model(blob)
    content = schema.BufferT()
    content.data = np.frombuffer(notes.encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = files.KEY, len(model.buffers)
    model.buffers.append(content)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(blob) + 4096)
    builder.Finish(model.Pack(builder), MAGIC)
    return bytes(builder.Output())


def read_notes(blob: bytes) -> bytes:
    """The notes in a file, empty if there are none."""
    model = _model(blob)
    for entry in model.metadata or []:
        if _text(entry.name) == files.KEY:
            return bytes(model.buffers[entry.buffer].data)
    return b""


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


# They move numbers or change their type: neither integer nor float arithmetic.
MOVES = {
    *("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE"),
    *("SPLIT", "PAD", "SHAPE", "BROADCAST_TO", "QUANTIZE", "DEQUANTIZE"),
}


def count(blob: bytes) -> census.Operations:
    """Operations of integers and of floats, by the types of their tensors."""
    schema, model = _schema(), _model(blob)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if k.isupper()}
    integer, places = Counter[str](), dict[str, list[str]]()
    for graph in model.subgraphs:
        real = lambda i, g=graph: g.tensors[i].type == schema.TensorType.FLOAT32
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            inputs = [i for i in operator.inputs if i >= 0]
            if name in MOVES:
                continue
            if not any(real(i) for i in (*inputs, *operator.outputs)):
                integer[name] += 1
            elif census.is_product(name) and not real(inputs[1]):
                integer[f"{name} (hybrid)"] += 1
            else:
                at = census.place(_text(graph.tensors[operator.outputs[0]].name))
                places.setdefault(name, []).append(at)
    floats = Counter({name: len(at) for name, at in places.items()})
    return census.Operations(integer, floats, places)


def interpreter(blob: bytes, threads: int | None) -> Any:
    """A LiteRT interpreter, ready to be called."""
    litert = files.optional("ai_edge_litert.interpreter", "litert")
    opened = litert.Interpreter(model_content=blob, num_threads=threads)
    opened.allocate_tensors()
    return opened


def runner(blob: bytes, threads: int | None) -> tuple[Callable, bytes]:
    """`images -> logits` of one batch by LiteRT, and the notes in the file."""
    opened = interpreter(blob, threads)
    (x,), (y,) = opened.get_input_details(), opened.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        opened.set_tensor(x["index"], images)
        opened.invoke()
        return opened.get_tensor(y["index"])

    return run, read_notes(blob)
