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
from jaxkd.export import census, edges, files, network, program
from jaxkd.export.write import Asked, Content, ExportReport, write
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
    io: str = "float32",
    **options: Any,
) -> ExportReport:
    """Write a network as a .tflite file, for phones and microcontrollers.

    A network from `compress.quantize.quantized` is written in int8; where both
    operands of every product are quantized, so must all the rest be. Images and logits
    are float32, or int8 by `io`. The file is there only if LiteRT computes with it
    what the network does, up to `tolerance` or `steps`.

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
      io: type of the file's input and output. "float32" quantizes the images and
        dequantizes the logits in the file. "int8" leaves both to the caller, as
        microcontrollers want it: `number = scale * (integer - zero_point)`, with
        scale and zero point in the tensors of the file and in `load(path).input` and
        `.output`. `load(path)` itself takes and returns floats of both kinds of file;
        it rounds halves to even as the network does, LiteRT may round them otherwise.
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
        float that `float_ops` does not allow; if `quantize` does not fit the network;
        if `io` is "int8" and images or logits have no static 8-bit range.
      FileNotFoundError: if there is no directory to write to.

    References:
      LiteRT 8-bit quantization specification.
      https://ai.google.dev/edge/litert/models/quantization_spec
    """
    recipe = quantize if isinstance(quantize, str) else None
    if recipe is not None:
        _check.one_of(*RECIPES)("quantize", recipe)
    _check.one_of(*edges.TYPES)("io", io)

    def emit(closed: Any, asked: Asked) -> Content:
        for package in ("litert_converter", "ai_edge_litert"):
            files.optional(package, "litert")
        marked = any(True for _ in census.fake_quants(closed))
        if marked and recipe is not None:
            raise ValueError(
                f"quantize={recipe!r} is for a network in float, and net is quantized: "
                "leave it out"
            )
        ends = edges.of(closed, io)
        plain = jax.jit(functools.partial(program.call, uneven(closed)))
        exported = jax.export.export(plain, platforms=["cpu"])
        image = jax.ShapeDtypeStruct(closed.in_avals[0].shape, np.float32)
        with program.without_locations():
            blob = convert(exported(image), strict=marked)
        if recipe is not None:
            blob = rounded(blob, RECIPES[recipe])
        if io == "int8":
            blob = with_integer_ends(blob, ends)
        notes = files.notes(
            "tflite", asked.image_shape, batch, *asked[3:5], ends, asked.preprocessing
        )
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
    """Return a program without biases that are the same number in every channel.

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
    """Return a float file with int8 kernels, by a recipe of ai-edge-quantizer."""
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
    """Return the file with the notes among its metadata."""
    schema, model = _schema(), _model(blob)
    content = schema.BufferT()
    content.data = np.frombuffer(notes.encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = files.KEY, len(model.buffers)
    model.buffers.append(content)
    model.metadata = [*(model.metadata or []), entry]
    return _packed(model)


def _packed(model: Any) -> bytes:
    builder = files.optional("flatbuffers", "litert").Builder(1 << 16)
    builder.Finish(model.Pack(builder), MAGIC)
    return bytes(builder.Output())


def with_integer_ends(blob: bytes, ends: edges.Ends) -> bytes:
    """The file without the QUANTIZE at its input and the DEQUANTIZE at its output.

    Args:
      blob: a file that begins with the one and ends with the other.
      ends: the grids of its images and logits.

    Returns:
      A file whose input and output are the integers between the two, under the names
      that the floats had.

    Raises:
      NotImplementedError: if the file begins or ends otherwise.
    """
    model = _model(blob)
    graph, (signature,) = model.subgraphs[0], model.signatureDefs
    outer = [graph.inputs[0], graph.outputs[0]]
    first = [o for o in graph.operators if outer[0] in o.inputs]
    last = [o for o in graph.operators if outer[1] in o.outputs]
    if _kinds(model, first) != ["QUANTIZE"] or _kinds(model, last) != ["DEQUANTIZE"]:
        raise NotImplementedError(
            "int8 at the ends needs a file that begins by quantizing the images and "
            "ends by dequantizing the logits; LiteRT's converter wrote "
            f"{_kinds(model, first)} and {_kinds(model, last)}: {edges.REMEDY}"
        )
    inner = [first[0].outputs[0], last[0].inputs[0]]
    for end, name, index in zip(ends, outer, inner, strict=True):
        _check_grid(graph.tensors[index], end)
        graph.tensors[index].name = graph.tensors[name].name
    graph.inputs, graph.outputs = inner[:1], inner[1:]
    signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex = inner
    graph.operators = [o for o in graph.operators if o not in (first[0], last[0])]
    _without_tensors(model, outer)
    _without_unused_codes(model)
    return _packed(model)


def _check_grid(tensor: Any, end: edges.Edge) -> None:
    """The tensor has the grid that the network has there."""
    grid = tensor.quantization
    found = tensor.type, *np.ravel(grid.scale), *np.ravel(grid.zeroPoint)
    if found != (_schema().TensorType.INT8, end.scale, end.zero_point):
        raise NotImplementedError(
            f"LiteRT's converter gave {_text(tensor.name)} another grid than the "
            f"network's, {end}: {edges.REMEDY}"
        )


def _without_tensors(model: Any, gone: list[int]) -> None:
    """Take tensors out of the file, and number the others anew."""
    graph, (signature,) = model.subgraphs[0], model.signatureDefs
    kept = [i for i in range(len(graph.tensors)) if i not in gone]
    new = {old: i for i, old in enumerate(kept)} | {-1: -1}  # -1: no tensor
    renumbered = lambda indices: [new[int(i)] for i in indices]
    graph.tensors = [graph.tensors[i] for i in kept]
    for each in (graph, *graph.operators):
        each.inputs, each.outputs = renumbered(each.inputs), renumbered(each.outputs)
    for operator in graph.operators:
        if operator.intermediates is not None:
            operator.intermediates = renumbered(operator.intermediates)
    for entry in (*signature.inputs, *signature.outputs):
        entry.tensorIndex = new[int(entry.tensorIndex)]


def _without_unused_codes(model: Any) -> None:
    """Take out kinds of operators that the file has none of: devices load by them."""
    operators = [o for graph in model.subgraphs for o in graph.operators]
    used = sorted({o.opcodeIndex for o in operators})
    model.operatorCodes = [model.operatorCodes[i] for i in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)


def _kinds(model: Any, operators: list) -> list[str]:
    """Return the names of operators, e.g. "CONV_2D"."""
    names = {v: k for k, v in vars(_schema().BuiltinOperator).items() if k.isupper()}
    codes = [model.operatorCodes[o.opcodeIndex] for o in operators]
    return [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]


def read_notes(blob: bytes) -> bytes:
    """Return the notes in a file, empty if there are none."""
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
    integer, places = Counter[str](), dict[str, list[str]]()
    for graph in model.subgraphs:
        real = lambda i, g=graph: g.tensors[i].type == schema.TensorType.FLOAT32
        names = _kinds(model, graph.operators)
        for name, operator in zip(names, graph.operators, strict=True):
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
    """Return a LiteRT interpreter, ready to be called."""
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
