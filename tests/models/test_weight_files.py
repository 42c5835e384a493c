"""Every format is read, and what is damaged, foreign or absurd is refused by name."""

import io
import pickle
import struct
import zipfile

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from jaxkd import checkpoint, models
from jaxkd.models import ZOO, Rule, Table, load_weights, save_weights
from jaxkd.models.weights import formats
from tests.models.weight_oracles import FILES

TINY = Table(
    ("tiny",), "net", (Rule("conv", "conv"), Rule("norm", "bn"), Rule("head", "fc"))
)
IMAGE = (8, 8, 3)


class Tiny(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


NET = models.from_linen(Tiny())


def loaded(path, net=NET, **how):
    return load_weights(net, path, **({"source": TINY, "image_shape": IMAGE} | how))


@pytest.fixture(scope="module")
def tiny():
    return loaded(FILES / "model.safetensors")[0]


READ = sorted(p for p in FILES.iterdir() if not p.name.startswith(("refuse", "spec")))
READ = [p for p in READ if p.name != "expected.npz"]


@pytest.mark.parametrize("path", READ, ids=lambda p: p.name)
def test_files_of_torch_and_safetensors(path):
    expected = np.load(FILES / "expected.npz")
    arrays = formats.read(path)
    assert {*arrays} - {"fc.tied"} == {n[2:] for n in expected if n.startswith("w/")}
    near = 2**-8 if path.name.startswith("b") else 2**-11 if "16" in path.name else 0
    for name in {*arrays} - {"fc.tied"}:
        wanted = expected[f"w/{name}"]
        assert arrays[name].shape == wanted.shape
        far = np.abs(arrays[name].astype(np.float64) - wanted)
        assert (far <= near * np.abs(wanted)).all(), name


def test_the_tiny_network_is_the_original(tiny):
    images = np.random.default_rng(7).standard_normal((2, 3, 8, 8)).astype("float32")
    out, _ = NET.apply(*tiny, images.transpose(0, 2, 3, 1), train=False)
    wanted = np.load(FILES / "expected.npz")["logits"]
    np.testing.assert_allclose(out.logits, wanted, atol=1e-5)


REFUSED = {
    "refuse_code.pth": "print",
    "refuse_code_legacy.pth": "print",
    "refuse_whole_module.pth": "Conv2d",
    "refuse_truncated.pth": "damaged",
    "refuse_truncated_legacy.pth": "cut off",
    "refuse_truncated.safetensors": "damaged",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_and_run_nothing(name, capsys):
    with pytest.raises(ValueError, match=f"{name}.*{REFUSED[name]}"):
        loaded(FILES / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["legacy.pth", "zip.pth", "model.safetensors"])
def test_changed_bytes_are_read_or_refused_by_a_value_error(name, tmp_path):
    rng, whole = np.random.default_rng(0), (FILES / name).read_bytes()
    refused = 0
    for _ in range(500):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        (tmp_path / name).write_bytes(content)
        try:
            formats.read(tmp_path / name)
        except ValueError as error:
            assert name in str(error)
            refused += 1
    assert refused > 100


class Call:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_of_any_protocol_runs(protocol, tmp_path, capsys):
    file = tmp_path / "bad.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"x": Call()}, protocol))
    with pytest.raises(ValueError, match="asks for .*print"):
        loaded(file)
    assert "this ran" not in capsys.readouterr().out


def zipped(path, change):
    """`zip.pth` with its pickle changed."""
    with zipfile.ZipFile(FILES / "zip.pth") as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            is_pickle = info.filename.endswith("data.pkl")
            new.writestr(info.filename, change(content) if is_pickle else content)
    return path


def test_absurd_shapes_are_refused_before_memory_is_taken(tmp_path):
    # The shape of `conv.weight`, (4, 3, 3, 3), with 2 ** 31 - 1 for its first length.
    shape = b"(K\x04K\x03K\x03K\x03t"
    huge = b"(J\xff\xff\xff\x7fK\x03K\x03K\x03t"
    absurd = zipped(tmp_path / "absurd.pth", lambda p: p.replace(shape, huge))
    with pytest.raises(ValueError, match="2147483647.*does not lie in its storage"):
        loaded(absurd)
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
    bad = tmp_path / "absurd.safetensors"
    bad.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(ValueError, match="absurd.safetensors is damaged"):
        loaded(bad)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(tmp_path / "absurd.npz", "w") as archive:
        archive.writestr("a.npy", file.getvalue())
    with pytest.raises(ValueError, match="absurd.npz is damaged: a of shape"):
        loaded(tmp_path / "absurd.npz")


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="a holds Python objects"):
        loaded(tmp_path / "o.npz")


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.parametrize("suffix", formats.WRITTEN)
@pytest.mark.parametrize("source", [TINY, "jaxkd"], ids=["theirs", "ours"])
def test_what_is_saved_is_loaded_exactly(suffix, source, tiny, tmp_path):
    path = tmp_path / f"saved{suffix}"
    named = save_weights(path, *tiny, source=source)
    (params, state), report = loaded(path, source=source)
    assert same((params, state), tiny)
    assert (report.source, report.fresh, report.left) == (named, (), ())


def test_folders_of_orbax_and_of_ours(tiny, tmp_path):
    params, state = jax.tree.map(np.asarray, tiny)
    ours = {"params": params, "state": state}
    flaxs = {"params": params, **state}
    checkpoint.save(tmp_path / "saved", ours)
    checkpoint.write(tmp_path / "written", ours, {"recipe": [], "empty": []})
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "orbax", flaxs)
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        wrong = jax.tree.map(np.zeros_like, flaxs)
        for step, tree in ((2, wrong), (10, flaxs)):
            manager.save(step, args=ocp.args.StandardSave(tree))
    (tmp_path / "f.msgpack").write_bytes(flax.serialization.to_bytes(flaxs))
    for name in ("saved", "written", "orbax", "manager", "f.msgpack"):
        found, report = loaded(tmp_path / name, source="auto")
        assert same(found, tiny) and report.source == "jaxkd", name


def test_another_width_is_refused_with_names_and_shapes():
    wide = models.from_linen(Tiny(6))
    with pytest.raises(ValueError, match=r"conv.bias gives \(4,\).*\(6,\)"):
        loaded(FILES / "zip.pth", wide)
    (params, state), report = loaded(FILES / "zip.pth", wide, strict=False)
    assert params["conv"]["kernel"].shape == (3, 3, 3, 6)
    assert report.copied == ("params/head/bias",)
    assert report.other_shape["params/conv/bias"] == ((4,), (6,))


def test_numbers_that_are_not_finite_are_refused(tiny, tmp_path):
    params, state = tiny
    params = {**params, "head": {**params["head"], "bias": jnp.full(5, jnp.nan)}}
    save_weights(tmp_path / "nan.npz", params, state, source=TINY)
    with pytest.raises(ValueError, match="nan.npz: params/head/bias .* not finite"):
        loaded(tmp_path / "nan.npz")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file of resnet8 with 3 classes, in PyTorch's names."""
    init = ZOO["resnet8"](classes=3).init
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32)
    params, state = jax.tree.map(draw, shapes)
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    assert save_weights(path, params, state) == "torchvision/resnet"
    return path


def test_a_head_of_another_number_of_classes_starts_fresh_when_asked(resnet):
    net = ZOO["resnet8"](classes=7)
    with pytest.raises(ValueError, match='fc.bias gives.*head="fresh"'):
        load_weights(net, resnet)
    (params, _), report = load_weights(net, resnet, head="fresh")
    assert report.fresh == ("params/head/bias", "params/head/kernel")
    assert params["head"]["kernel"].shape == (64, 7)
    fc = safetensors.numpy.load_file(resnet)["conv1.weight"]
    assert np.array_equal(params["stem_conv"]["kernel"], fc.transpose(2, 3, 1, 0))


def test_a_file_of_another_family_is_refused_by_its_name(resnet):
    with pytest.raises(ValueError, match="of another network.*torchvision/resnet"):
        load_weights(ZOO["vgg8"](classes=3), resnet)
    with pytest.raises(ValueError, match="not in the file: layer1.1"):
        load_weights("resnet14", resnet)
    with pytest.raises(ValueError, match="no table of transformers fits"):
        load_weights("wrn_16_1", resnet, source="transformers")
    with pytest.raises(KeyError, match="did you mean resnet8"):
        load_weights("resnet8x", resnet)


def test_a_missing_file_and_a_folder_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        loaded(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="is no checkpoint"):
        loaded(tmp_path)
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    with pytest.raises(ValueError, match="files must lie beside it"):
        loaded(tmp_path / "m.safetensors.index.json")
