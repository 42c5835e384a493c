"""The layers of the library: a module imports only from layers before its own."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "jaxkd"
LAYERS = [
    "types jaxpr store _check _loop _text _tree cost mesh processes checkpoint",
    "losses",
    "data",
    "models",
    "distill terms",
    "train evaluate log cache schemes transfer",
    "recipes",
    "compress",
    "export report",
    "pipeline",
    "__main__",
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names.split()}


def layers_imported(path):
    """The rooms that a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("jaxkd."))


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in layers_imported(path):
        assert own == "__init__" or LEVEL[other] <= LEVEL[own], f"{own} -> {other}"


def test_losses_need_no_layers_optimisers_or_data_sets():
    heavy = {"flax", "optax", "tensorflow", "tensorflow_datasets"}
    code = f"import sys, jaxkd.losses; print(sorted({heavy} & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
