"""Random configurations: values of the types of `config`, at their ends and beyond."""

import random
import types
import typing
from typing import get_args, get_origin

import msgspec

from jaxkd.pipeline import data_kinds, parts
from jaxkd.pipeline.stages import KINDS

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
WILD = [
    *(0, 1, -1, 2**31, 10**12, 10**40, 10**400, -(2**63), True, False),
    *(0.0, -0.5, 1e308, 5e-324, 1e-300, *NOT_FINITE),
    *("", "x", "student", "student.json", "../../etc", "a" * 999, "\x1b[2J", "é", "*"),
    *([], [1], [[]], ["*"], {}, {"a": 1}, {"kind": "train"}, {"kind": 3}),
]
TEXTS = ["", "x", "student", "*", "head/*", "conv*", "\u0000", "a/b", "."]
PAIRS = ["pooled", "pooled", ["pooled"], {"pooled": "pooled"}, "stage1", [], 3]
LOSSES = {
    **{"ce": {}, "kd": {}, "dkd": {}, "jsd": {}, "dist": {}, "rld": {}, "wsld": {}},
    **{"hint": {"pairs": PAIRS}, "at": {"pairs": PAIRS}, "rkd": {}, "crd": {}},
    **{"fsp": {"layers": [[["stage1", "pooled"]], [["stage1"]], 1]}, "cc": {}},
    **{"label_smoothing": {}, "reviewkd": {}, "ofd": {}, "kdd": {}, "ctkd": {}},
}
BY_KIND = {kind.__struct_config__.tag: kind for kind in KINDS}
NEEDED = [("teacher", "distill"), ("source", "transfer")]
KNOBS = ["temperature", "alpha", "gamma", "negatives", "dims", "chunk", "levels", "p"]


class Randomly:
    """Draws values.

    Attributes:
      rng: of all draws.
      wild: how likely a value is one that does not fit its type.
      small: whether numbers stay where a check is quick.
    """

    def __init__(self, seed: int, *, wild: float, small: bool):
        """Starts the draws."""
        self.rng = random.Random(seed)
        self.wild = wild
        self.small = small

    def config(self):
        """A table like those of TOML files, its names mostly fitting together."""
        rng, kinds = (
            self.rng,
            [parts.MlpTable, parts.CnnTable, parts.SpaceTable, parts.Zoo],
        )
        odd = rng.choice(["other"] * 8 + ["Student", "t.json"])
        names = ["student", "teacher", odd][: rng.choice([1, 2, 2, 2, 3])]
        raw = {"data": self.table(data_kinds.Tfds, 0.2), "models": {}, "stages": []}
        images = rng.choice([100, 100, 100, 100, 300, 1])
        raw["data"] |= {"name": "digits", "train_images": images}
        for name in names:
            (kind,) = rng.choices(kinds, [5, 5, 2, 1])
            model = raw["models"][name] = self.table(kind, 0.2)
            if kind is parts.SpaceTable and "widths" in model:
                model["widths"] = rng.choice([[4] * 4] * 4 + [[8], [0] * 4])
            if kind is parts.Zoo:
                model["name"] = rng.choice(["resnet8x4"] * 9 + ["vit_tiny", "resnet"])
        for place in reversed(range(len(names))):
            name, trained = names[place], names[place + 1 :]
            raw["stages"] += self.stages(name, raw["models"][name], trained)
        if rng.random() < 0.1:
            rng.shuffle(raw["stages"])
        for name, kind in {"seed": int, "checkpoints": parts.Checkpoints}.items():
            if rng.random() < 0.2:
                raw[name] = self.value(kind)
        return raw

    def stages(self, name, model, trained):
        """Stages of one model, after others were trained, mostly in a fit order."""
        rng, after = self.rng, ["finetune", "prune", "quantize", "export", "evaluate"]
        after += ["distill"] if trained else []
        kinds = ["search"] if model.get("kind") == "space" else []
        kinds += [rng.choice(["train", *(["distill", "transfer"] if trained else [])])]
        more = rng.sample(after, rng.randint(0, 3))
        kinds += more if rng.random() < 0.1 else sorted(more, key=["prune"].count)[::-1]
        kinds += [rng.choice([*BY_KIND])] if rng.random() < 0.03 else []
        for kind in kinds:
            stage = self.table(BY_KIND[kind], 0.15) | {"model": name}
            for field in ("teacher", "source"):
                if (field in stage and trained) or (field, kind) in NEEDED:
                    stage[field] = rng.choice(trained or [name])
                elif field in stage and rng.random() < 0.9:
                    del stage[field]
            if "losses" in stage or kind == "distill":
                stage["losses"] = self.losses(bool(stage.get("teacher")))
            yield stage

    def losses(self, taught):
        """A table of one to three losses."""
        rng, table = self.rng, {}
        known = list(LOSSES) if taught else ["ce", "label_smoothing"]
        for name in rng.sample(known, rng.randint(1, min(len(known), 3))):
            entry = {k: rng.choice(v) for k, v in LOSSES[name].items()}
            if rng.random() < 0.5:
                entry["weight"] = self.value(parts.Weight)
            if rng.random() < 0.1:
                entry["weight"] = self.table(parts.Ramp, 0.4)
            if rng.random() < 0.2:
                entry[rng.choice(KNOBS)] = self.value(rng.choice([int, float]))
            table[name if rng.random() < 0.97 else rng.choice(TEXTS)] = entry
        return table

    def table(self, kind, share):
        """A part of a configuration, with some of its keys."""
        raw = {}
        if kind.__struct_config__.tag is not None:
            raw["kind"] = kind.__struct_config__.tag
        fields = {f.encode_name: f for f in msgspec.structs.fields(kind)}
        for name, field in fields.items():
            if field.required or self.rng.random() < share:
                raw[name] = self.value(field.type)
        most = {"epochs": 3, "batch_size": 100, "candidates": 3} if self.small else {}
        for name in [n for n in most if n in fields]:
            bounds = list(get_args(fields[name].type)[1:])
            odd = self.number(int, bounds)
            (raw[name],) = self.rng.choices([1, most[name], 20, odd], [5, 5, 10, 1])
        return raw

    def value(self, kind, bounds=()):
        """A value of a type, or one that does not fit it."""
        rng = self.rng
        if rng.random() < self.wild:
            return rng.choice(WILD)
        while get_origin(kind) is typing.Annotated:
            kind, *notes = get_args(kind)
            bounds = [n for n in notes if isinstance(n, msgspec.Meta)]
        origin = get_origin(kind)
        if origin is typing.Literal:
            return rng.choice([*get_args(kind)])
        if origin in (typing.Union, types.UnionType):
            return self.value(rng.choice(get_args(kind)))
        if origin is tuple:
            least = max([b.min_length or 0 for b in bounds], default=0)
            most = max(3, least) if rng.random() < 0.98 else 70
            return [
                self.value(get_args(kind)[0]) for _ in range(rng.randint(least, most))
            ]
        if origin is dict:
            of = get_args(kind)[1]
            return {rng.choice(TEXTS): self.value(of) for _ in range(rng.randint(0, 2))}
        if kind is bool:
            return rng.random() < 0.5
        if kind is str:
            named = any(bound.pattern for bound in bounds)
            odd = rng.random() < 0.03
            return rng.choice(TEXTS if odd else [""] if named else ["", "", "", "*"])
        if kind in (int, float):
            return self.number(kind, bounds)
        if isinstance(kind, type) and issubclass(kind, parts.Options):
            return self.table(kind, 0.5)
        return rng.choice(WILD)

    def number(self, kind, bounds):
        """Within its bounds, sometimes at an end, seldom just beyond."""
        rng = self.rng
        low, high = 0, 10
        for bound in bounds:
            low = next((b for b in (bound.ge, bound.gt) if b is not None), low)
            high = next((b for b in (bound.le, bound.lt) if b is not None), high)
        near = min(high, max(low, 64 if kind is int else 1.0))
        between = rng.randint(low, near) if kind is int else rng.uniform(low, near)
        beyond = rng.choice([low - 1, high + 1])
        at, past = ([0.3, 0.05], 0.05) if self.small else ([1, 0.5], 0.1)
        return rng.choices([between, low, high, beyond], [20, *at, past])[0]
