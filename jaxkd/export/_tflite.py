"""LiteRT (.tflite): StableHLO through Google's converter, without TensorFlow."""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import _check
from jaxkd.export import census, files, program, report
from jaxkd.export.report import Report

MAGIC = b"TFL3"  # at byte 4, the flatbuffer's own
RECIPES = {"dynamic": "dynamic_wi8_afp32", "weight_only": "weight_only_wi8_afp32"}


def tflite(
    f: program.Function,
    image_shape: Sequence[int],
    path: Any,
    *,
    quantized: str | bool = "auto",
    batch: int = 1,
    **options: Any,
) -> Report:
    """Writes a function of images as a .tflite file, for phones and microcontrollers.

    Values that pass through `quant.fake_quant` become int8; where both operands of
    every product do, so must all the rest. Images and logits are float32 at the edges.

    Args:
      f: images to logits, its parameters closed over, e.g. from `inference`.
      image_shape: `(height, width, channels)` of one image.
      path: of the file, in a directory that exists; replaced if it is there.
      quantized: "auto" does what is marked in `f`, and False refuses marks. Of an `f`
        in float, "dynamic" stores int8 kernels and quantizes activations by their
        range in each call; "weight_only" stores int8 kernels and computes in float.
      batch: how many images a call takes.
      **options: `name`, `classes`, `examples`, `float_ops` and `measure`, as in
        `report.options`.

    Returns:
      What was written. Operations of int8 kernels and float activations, which LiteRT
      quantizes on the way, count as integer with "(hybrid)" after their name.

    Raises:
      ImportError: without the packages of the extra `litert`.
      ValueError: if a product that was marked as quantized did not become integer, or
        `quantized` does not fit what is marked in `f`.
      FileNotFoundError: if there is no directory to write to.

    References:
      LiteRT 8-bit quantization specification.
      https://ai.google.dev/edge/litert/models/quantization_spec
    """
    files.check_directory(path)
    _check.one_of("auto", False, *RECIPES)("quantized", quantized)
    asked = report.options(image_shape, batch, **options)
    for package in ("litert_converter", "ai_edge_litert"):
        files.optional(package, "litert")
    closed = program.trace(f, image_shape, batch)
    marked = any(True for _ in census.fake_quants(closed))
    if marked and quantized != "auto":
        raise ValueError(
            f"f is marked as quantized: quantized={quantized!r} does not fit"
        )
    exported = jax.export.export(jax.jit(program.plain(f)), platforms=["cpu"])
    blob = convert(exported(program.image(image_shape, batch)), strict=marked)
    if quantized in RECIPES:
        blob = quantize(blob, RECIPES[str(quantized)])
    notes = files.notes("tflite", image_shape, batch, asked.name, asked.classes)
    blob = with_notes(blob, notes)
    return report.finish(
        f,
        closed,
        blob,
        path,
        format="tflite",
        ops=count(blob),
        run=runner(blob, 1)[0],
        options=asked,
    )


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
        api.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        return bytes(api.export_flatbuffer_to_bytes(module.operation))


def quantize(blob: bytes, recipe: str) -> bytes:
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


def count(blob: bytes) -> tuple[Counter, Counter]:
    """Operations of integers and of floats, by the types of their tensors."""
    schema, model = _schema(), _model(blob)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if k.isupper()}
    integer, floats = Counter[str](), Counter[str]()
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
                floats[name] += 1
    return integer, floats


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
