"""ONNX: the plain program written operation by operation, int8 where it is marked."""

import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd import _check
from jaxkd.compress.quantize import Quantization
from jaxkd.export import census, edges, files, network
from jaxkd.export.onnx_graph import (
    INPUT,
    OUTPUT,
    OnnxGraph,
    Value,
    constant,
    node,
    tensor,
)
from jaxkd.export.onnx_rules import RULES
from jaxkd.export.write import Asked, Content, ExportReport, write
from jaxkd.models.net import Net
from jaxkd.types import Params, State

OPSET, IR_VERSION = 17, 8
SAME_SUM = ("reshape", "squeeze", "broadcast_in_dim")


def onnx(
    net: Net,
    params: Params,
    state: State,
    path: str | os.PathLike,
    *,
    quantize: Quantization | None = None,
    batch: int | None = None,
    io: str = "float32",
    **options: Any,
) -> ExportReport:
    """Write a network as an ONNX file, for ONNX Runtime and others.

    The graph is written from the traced program: it does not matter what library the
    layers are from. Images enter as `[batch, height, width, channels]` and are
    channels first inside. A network from `compress.quantize.quantized` is written with
    uint8 activations, int8 kernels and int32 biases, between which ONNX Runtime finds
    its integer kernels; where both operands of every product are quantized, so must
    all the rest be. The file is there only if ONNX Runtime computes with it what the
    network does, up to `tolerance` or `steps`. Loops are written out.

    Args:
      net: a network, quantized or not; any function of images by `export.function`.
      params: its parameters; they become constants.
      state: its state, calibrated or trained if it is quantized.
      path: of the file, in a directory that exists; replaced if it is there.
      quantize: the configuration that `net` was quantized with; it is known from the
        network, and given only to be sure.
      batch: how many images a call takes; None for any number.
      io: type of the file's input and output. "float32" quantizes the images and
        dequantizes the logits in the file. "int8" leaves both to the caller, as
        microcontrollers want it: `number = scale * (integer - zero_point)`, with
        scale and zero point in the graph's quantization annotation and in
        `load(path).input` and `.output`. `load(path)` itself takes and returns floats
        of both kinds of file. Inside, activations are uint8 in both.
      **options: `inputs` or `image_shape`, `name`, `classes`, `float_ops`,
        `tolerance`, `steps` and `measure`, as in `write.options`. With
        `tolerance=None`, ONNX Runtime is not needed; the operations are then counted
        as written, not after its optimisation.

    Returns:
      What was written.

    Raises:
      ImportError: without the packages `onnx` and `onnxruntime`.
      NotImplementedError: if the program has an operation that is not covered; it
        names the operation and its place in the network.
      ValueError: if the file differs from the network by more than the limit; if a
        weight or input is not finite; if anything of a quantized network stays in
        float that `float_ops` does not allow; if `quantize` does not fit the network;
        if `io` is "int8" and images or logits have no static 8-bit range.
      FileNotFoundError: if there is no directory to write to.

    References:
      ONNX operators, opset 17. https://onnx.ai/onnx/operators/
      Quantize ONNX models. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    _check.one_of(*edges.TYPES)("io", io)

    def emit_content(closed: Any, asked: Asked) -> Content:
        package("onnx")
        if asked.limits.tolerance is not None:
            package("onnxruntime")
        ends = edges.of(closed, io)
        model = emit(closed, ends)
        notes = files.notes(
            "onnx", asked.image_shape, batch, *asked[3:5], ends, asked.preprocessing
        )
        model.metadata_props.add(key=files.KEY, value=notes)
        blob = model.SerializeToString()
        return Content(blob, count(blob))

    return write(
        "onnx",
        net,
        params,
        state,
        path,
        function_of=network.as_marked,
        emit=emit_content,
        quantize=quantize,
        target="onnx",
        batch=batch,
        **options,
    )


def package(name: str) -> Any:
    """Return the optional package, or how to install it."""
    return files.optional(name, "onnx")


def emit(closed: Any, ends: edges.Ends = edges.FLOAT) -> Any:
    """Return the ONNX model of a plain program of images, with these ends."""
    import onnx as library

    jaxpr, (x,) = closed.jaxpr, closed.jaxpr.invars
    graph, shape = OnnxGraph([], [], {}, ["f"]), tuple(x.aval.shape)
    env = {
        v: Value(tuple(c.shape), const=np.asarray(c))
        for v, c in zip(jaxpr.constvars, closed.consts, strict=True)
    }
    grids = [_grid(graph, end) for end in ends if end.dtype == "int8"]
    image = INPUT
    if grids:
        image = node(graph, "DequantizeLinear", [INPUT, *grids[0]])
    env[x] = Value(shape, image, tuple(range(len(shape))))
    uses = Counter(v for e in jaxpr.eqns for v in e.invars if not hasattr(v, "val"))
    for equation in jaxpr.eqns:
        values = [_read(env, v) for v in equation.invars]
        outs = _emitted(graph, equation, values)
        for variable, out in zip(equation.outvars, outs, strict=True):
            shared = uses[variable] > 1
            env[variable] = out._replace(node=None) if shared else out
    out = _read(env, jaxpr.outvars[0])
    last = tensor(graph, out, range(len(out.shape)))
    if grids:
        last = node(graph, "QuantizeLinear", [last, *grids[1]])
    graph.nodes.append(library.helper.make_node("Identity", [last], [OUTPUT]))
    model = _model(graph, shape, tuple(out.shape), grids)
    library.checker.check_model(model, full_check=True)
    return model


def _read(env: dict, variable: Any) -> Value:
    if hasattr(variable, "val"):
        array = np.asarray(variable.val).astype(variable.aval.dtype)
        return Value(tuple(array.shape), const=array)
    return env[variable]


def _emitted(graph: OnnxGraph, equation: Any, values: list[Value]) -> list[Value]:
    """Return the results of one equation, by its rule."""
    name = equation.primitive.name
    scope = graph.scope[0] = str(equation.source_info.name_stack) or "f"
    where = census.place(f"{scope}/{name}")
    if name not in RULES:
        raise NotImplementedError(
            f"no ONNX operation is written for {name!r}, used in {where}; there are "
            f"{sorted(RULES)}"
        )
    rule: Callable = RULES[name]
    try:
        outs = rule(graph, equation, *values)
        if name in SAME_SUM and values[0].total is not None:
            mean, count = values[0].total
            outs = outs._replace(total=(rule(graph, equation, mean), count))
    except NotImplementedError as error:
        raise NotImplementedError(f"{name!r} in {where}: {error}") from error
    return outs if isinstance(outs, list) else [outs]


def _grid(graph: OnnxGraph, end: edges.Edge) -> list[str]:
    """Return the names of the scale and the zero point of an end in int8."""
    scale, zero = np.float32(end.scale), np.int8(end.zero_point)
    return [constant(graph, scale), constant(graph, zero)]


def _annotation(name: str, grid: list[str]) -> Any:
    """Return the scale and the zero point of a tensor, as ONNX keeps them for tools."""
    from onnx import StringStringEntryProto as Entry, TensorAnnotation

    keys = ("SCALE_TENSOR", "ZERO_POINT_TENSOR")
    held = [Entry(key=k, value=v) for k, v in zip(keys, grid, strict=True)]
    return TensorAnnotation(tensor_name=name, quant_parameter_tensor_names=held)


def _model(graph: OnnxGraph, inputs: tuple, outputs: tuple, grids: list) -> Any:
    """The model of those nodes that the output needs; with grids, int8 at its ends."""
    from onnx import TensorProto, helper

    nodes, needed = [], {OUTPUT}
    for made in reversed(graph.nodes):
        if needed & set(made.output):
            nodes.append(made)
            needed |= set(made.input)
    sizes = lambda shape: [n if isinstance(n, int) else str(n) for n in shape]
    kind = TensorProto.INT8 if grids else TensorProto.FLOAT
    described = helper.make_graph(
        nodes[::-1],
        "jaxkd",
        [helper.make_tensor_value_info(INPUT, kind, sizes(inputs))],
        [helper.make_tensor_value_info(OUTPUT, kind, sizes(outputs))],
        [c for c in graph.constants if c.name in needed],
    )
    held = [_annotation(*end) for end in zip((INPUT, OUTPUT), grids, strict=False)]
    described.quantization_annotation.extend(held)
    return helper.make_model(
        described,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxkd",
    )


def count(blob: bytes) -> census.Operations:
    """Operations of integers and of floats, as ONNX Runtime runs them if it is here."""
    import onnx as library

    model = library.load_from_string(_optimised(blob) or blob)
    return count_nodes(model.graph)


# They move numbers or change their type: neither integer nor float arithmetic.
MOVES = {
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice"),
    *("Shape", "Cast", "Expand", "Split", "Constant", "ReorderInput", "ReorderOutput"),
    *("QuantizeLinear", "DequantizeLinear"),
}
FLOAT_OUT = ("DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def count_nodes(graph: Any) -> census.Operations:
    """Sort operations by what their inputs are, followed from the graph's input."""
    from onnx import TensorProto

    real = TensorProto.FLOAT
    floats = {v.name for v in graph.input if v.type.tensor_type.elem_type == real}
    integer, places = Counter[str](), dict[str, list[str]]()
    stored = {c.name for c in graph.initializer}
    for made in graph.node:
        quantized = made.op_type.startswith("QLinear") or made.op_type == "QGemm"
        fed = [n for n in made.input if n and n not in stored]
        is_float = not quantized and any(n in floats for n in fed)
        if made.op_type not in MOVES and is_float:
            places.setdefault(made.op_type, []).append(census.place(made.output[0]))
        elif made.op_type not in MOVES:
            integer[made.op_type] += 1
        to_float = made.op_type == "QGemm" and len(made.input) < 8
        passed_on = is_float and made.op_type != "QuantizeLinear"
        if made.op_type in FLOAT_OUT or to_float or passed_on:
            floats |= set(made.output)
    counts = Counter({name: len(at) for name, at in places.items()})
    return census.Operations(integer, counts, places)


def has_runtime() -> bool:
    """Return whether ONNX Runtime is installed."""
    try:
        package("onnxruntime")
    except ImportError:
        return False
    return True


def _optimised(blob: bytes) -> bytes | None:
    """Return the graph that ONNX Runtime makes of a file, or None without it."""
    if not has_runtime():
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "optimised.onnx")
        session(blob, optimised=str(path))
        return path.read_bytes()


def session(blob: bytes, threads: int = 1, optimised: str = "") -> Any:
    """Return an ONNX Runtime session on the CPU."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    # It warns that the optimised graph is this machine's.
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = optimised
    return runtime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])


def runner(blob: bytes, threads: int) -> tuple[Callable, str]:
    """`images -> logits` by ONNX Runtime, and the notes in the file."""
    opened = session(blob, threads)
    notes = opened.get_modelmeta().custom_metadata_map.get(files.KEY, "")
    (x,) = opened.get_inputs()
    return lambda images: opened.run(None, {x.name: images})[0], notes
