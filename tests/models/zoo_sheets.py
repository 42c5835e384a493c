"""What the networks of the zoo should cost and show: sums on paper, layer by layer.

A sheet lists convolutions as rows `(window, inputs, outputs, groups, side)`, `side` the
height and width of what comes out; the numbers follow from the rows alone.
"""

from typing import NamedTuple


class Sheet(NamedTuple):
    """Rows of convolutions, channels of the BatchNorms, what the head sees, taps."""

    rows: list
    features: int
    taps: dict
    norms: list | None = None  # one after each convolution, if None
    biases: int = 0

    def parameters(self, classes):
        norms = [row[2] for row in self.rows] if self.norms is None else self.norms
        kernels = sum(k * k * i // g * o for k, i, o, g, _ in self.rows)
        return kernels + 2 * sum(norms) + self.biases + (self.features + 1) * classes

    def macs(self, classes):
        maps = sum(k * k * i // g * o * n * n for k, i, o, g, n in self.rows)
        return maps + self.features * classes


def square(side, channels):
    return (side, side, channels)


def tapped(stem, stages, unpooled, pre=True):
    taps = {"stem": stem, "unpooled": unpooled, "pooled": unpooled[-1:]}
    for i, shape in enumerate(stages, start=1):
        taps[f"stage{i}"] = shape
        if pre:
            taps[f"stage{i}_pre"] = shape
    return taps


def resnet(depth, widths=(16, 16, 32, 64)):
    """He et al. (2016), section 4.2, with shortcuts of option B."""
    rows, inputs, stages = [(3, 3, widths[0], 1, 32)], widths[0], []
    for i, width in enumerate(widths[1:]):
        side = 32 // 2**i
        stages.append(square(side, width))
        if i or inputs != width:
            rows += [(1, inputs, width, 1, side)]
        for _ in range((depth - 2) // 6):
            rows += [(3, inputs, width, 1, side), (3, width, width, 1, side)]
            inputs = width
    return Sheet(rows, inputs, tapped(square(32, widths[0]), stages, square(8, inputs)))


def wrn(depth, widen):
    """Zagoruyko & Komodakis (2016), table 1."""
    rows, norms, inputs, stages = [(3, 3, 16, 1, 32)], [], 16, []
    for i in range(3):
        width, side = 16 * widen * 2**i, 32 // 2**i
        stages.append(square(side, width))
        if inputs != width:
            rows += [(1, inputs, width, 1, side)]
        for _ in range((depth - 4) // 6):
            rows += [(3, inputs, width, 1, side), (3, width, width, 1, side)]
            norms += [inputs, width]
            inputs = width
    taps = tapped(square(32, 16), stages, square(8, inputs))
    return Sheet(rows, inputs, taps, [*norms, inputs])


def vgg(*counts):
    """Simonyan & Zisserman (2015), table 1, one linear layer; three poolings."""
    rows, inputs, shapes = [], 3, []
    for width, count, side in zip(
        (64, 128, 256, 512, 512), counts, (32, 16, 8, 4, 4), strict=True
    ):
        shapes.append(square(side, width))
        for _ in range(count):
            rows += [(3, inputs, width, 1, side)]
            inputs = width
    taps = tapped(shapes[0], shapes[1:], shapes[-1])
    return Sheet(rows, 512, taps, biases=sum(row[2] for row in rows))


def vgg_bn(*counts):
    """Simonyan & Zisserman (2015), table 1, with BatchNorm, at 224x224."""
    small = vgg(*counts)
    plan = zip(counts, (224, 112, 56, 28, 14), strict=True)
    sides = [side for count, side in plan for _ in range(count)]
    rows = [(*row[:4], side) for row, side in zip(small.rows, sides, strict=True)]
    dense = [(1, 25088, 4096, 1, 1), (1, 4096, 4096, 1, 1)]
    stages = [square(s, w) for s, w in ((112, 128), (56, 256), (28, 512), (14, 512))]
    taps = tapped(square(224, 64), stages, square(7, 512)) | {"pooled": (4096,)}
    norms = [row[2] for row in rows]
    return Sheet(rows + dense, 4096, taps, norms, small.biases + 8192)


def imagenet_resnet(blocks, bottleneck, cifar, groups=1, group_width=64):
    """He et al. (2016), table 1; the bottleneck's stride in its 3x3 convolution."""
    side = 32 if cifar else 56
    rows = [(3, 3, 64, 1, 32) if cifar else (7, 3, 64, 1, 112)]
    inputs, stages = 64, []
    for i, count in enumerate(blocks):
        width, before = 64 * 2**i, side
        side = side if i == 0 else side // 2
        outputs = 4 * width if bottleneck else width
        stages.append(square(side, outputs))
        if inputs != outputs:
            rows += [(1, inputs, outputs, 1, side)]
        for j in range(count):
            if bottleneck:
                inner = width * group_width // 64 * groups
                rows += [(1, inputs, inner, 1, before if j == 0 else side)]
                rows += [(3, inner, inner, groups, side), (1, inner, outputs, 1, side)]
            else:
                rows += [(3, inputs, width, 1, side), (3, width, width, 1, side)]
            inputs = outputs
    stem = square(32 if cifar else 112, 64)
    return Sheet(rows, inputs, tapped(stem, stages, stages[-1]))


def mobilenet_v1(alpha):
    """Howard et al. (2017), table 1."""
    scaled = lambda c: int(c * alpha)
    inputs = scaled(32)
    rows, side, shapes = [(3, 3, inputs, 1, 112)], 112, []
    for c, s in [
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        *[(512, 1)] * 5, (1024, 2), (1024, 1),
    ]:  # fmt: skip
        side //= s
        rows += [(3, inputs, inputs, inputs, side), (1, inputs, scaled(c), 1, side)]
        inputs = scaled(c)
        shapes.append(square(side, inputs))
    stages = [shapes[i] for i in (2, 4, 10, 12)]
    return Sheet(rows, inputs, tapped(square(112, scaled(32)), stages, stages[-1]))


def mobilenet_v2(alpha, side, strides, expand_first):
    """Sandler et al. (2018), table 2."""
    scaled = lambda c: int(c * alpha)
    inputs, side = scaled(32), side // 2
    rows, shapes, stem = [(3, 3, inputs, 1, side)], [], square(side, inputs)
    table = [
        (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3),
        (6, 320, 1),
    ]  # fmt: skip
    for (t, c, n), stride in zip(table, strides, strict=True):
        for j in range(n):
            wide = t * inputs
            if t > 1 or expand_first:
                rows += [(1, inputs, wide, 1, side)]
            side = side // stride if j == 0 else side
            rows += [(3, wide, wide, wide, side), (1, wide, scaled(c), 1, side)]
            inputs = scaled(c)
        shapes.append(square(side, inputs))
    rows += [(1, inputs, 1280, 1, side)]
    stages = [shapes[i] for i in (1, 2, 4, 6)]
    return Sheet(rows, 1280, tapped(stem, stages, square(side, 1280)))


def shufflenet_v1():
    """Zhang et al. (2018), table 1, g = 3; a 1x1 stem at 32x32."""
    rows, inputs, side, stages = [(1, 3, 24, 1, 32)], 24, 32, []
    for width, units in ((240, 4), (480, 8), (960, 4)):
        for j in range(units):
            outputs = width - inputs if j == 0 else width
            inner, groups = outputs // 4, 1 if inputs == 24 else 3
            rows += [(1, inputs, inner, groups, side)]
            side = side // 2 if j == 0 else side
            rows += [(3, inner, inner, inner, side), (1, inner, outputs, 3, side)]
            inputs = width
        stages.append(square(side, width))
    return Sheet(rows, inputs, tapped(square(32, 24), stages, stages[-1]))


def shufflenet_v2(cifar):
    """Ma et al. (2018), table 5, 1x."""
    rows = [(1, 3, 24, 1, 32) if cifar else (3, 3, 24, 1, 112)]
    inputs, side, stages = 24, 32 if cifar else 56, []
    for width, units in ((116, 4), (232, 8), (464, 4)):
        half = width // 2
        rows += [(1, inputs, half, 1, side)]
        side //= 2
        rows += [(3, half, half, half, side), (1, half, half, 1, side)]
        rows += [(3, inputs, inputs, inputs, side), (1, inputs, half, 1, side)]
        unit = [(1, half, half, 1, side), (3, half, half, half, side)]
        rows += (units - 1) * [*unit, (1, half, half, 1, side)]
        inputs = width
        stages.append(square(side, width))
    rows += [(1, inputs, 1024, 1, side)]
    stem = square(32 if cifar else 112, 24)
    return Sheet(rows, 1024, tapped(stem, stages, square(side, 1024)))


def mbconvs(stem, stages, last, hidden=0):
    """Of blocks (window, widened or 0, outputs, squeezed or 0, stride), at 224x224."""
    inputs, side = stem, 112
    rows, norms, biases, shapes = [(3, 3, stem, 1, side)], [stem], 0, []
    for blocks in stages:
        for window, widened, outputs, squeezed, stride in blocks:
            wide = widened or inputs
            if widened:
                rows, norms = [*rows, (1, inputs, wide, 1, side)], [*norms, wide]
            side //= stride
            rows += [(window, wide, wide, wide, side)]
            if squeezed:
                rows += [(1, wide, squeezed, 1, 1), (1, squeezed, wide, 1, 1)]
                biases += squeezed + wide
            rows += [(1, wide, outputs, 1, side)]
            norms, inputs = [*norms, wide, outputs], outputs
        shapes.append(square(side, inputs))
    rows, norms = [*rows, (1, inputs, last, 1, side)], [*norms, last]
    taps = tapped(square(112, stem), shapes, square(side, last))
    if hidden:
        rows, biases = [*rows, (1, last, hidden, 1, 1)], biases + hidden
        taps["pooled"] = (hidden,)
    return Sheet(rows, hidden or last, taps, norms, biases)


def mobilenet_v3_small():
    """Howard et al. (2019), table 2."""
    stages = [
        [(3, 0, 16, 8, 2)],
        [(3, 72, 24, 0, 2), (3, 88, 24, 0, 1)],
        [(5, 96, 40, 24, 2), (5, 240, 40, 64, 1), (5, 240, 40, 64, 1)],
        [(5, 120, 48, 32, 1), (5, 144, 48, 40, 1)],
        [(5, 288, 96, 72, 2), (5, 576, 96, 144, 1), (5, 576, 96, 144, 1)],
    ]
    return mbconvs(16, stages, 576, 1024)


def mobilenet_v3_large():
    """Howard et al. (2019), table 1."""
    stages = [
        [(3, 0, 16, 0, 1)],
        [(3, 64, 24, 0, 2), (3, 72, 24, 0, 1)],
        [(5, 72, 40, 24, 2), (5, 120, 40, 32, 1), (5, 120, 40, 32, 1)],
        [(3, 240, 80, 0, 2), (3, 200, 80, 0, 1), *[(3, 184, 80, 0, 1)] * 2],
        [(3, 480, 112, 120, 1), (3, 672, 112, 168, 1)],
        [(5, 672, 160, 168, 2), (5, 960, 160, 240, 1), (5, 960, 160, 240, 1)],
    ]
    return mbconvs(16, stages, 960, 1280)


def efficientnet(widths=(16, 24, 40, 80, 112, 192, 320), blocks=(1, 2, 2, 3, 3, 4, 1),
                 squeezes=False):  # fmt: skip
    """Tan & Le (2019), table 1, with the widths and depths of a scaled network."""
    inputs, stages = 32, []
    plan = zip(
        widths, blocks, (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), strict=True
    )
    for i, (width, count, window, stride) in enumerate(plan):
        stages.append([])
        for j in range(count):
            widened, squeezed = 6 * inputs * (i > 0), inputs // 4 * squeezes
            step = stride if j == 0 else 1
            stages[-1].append((window, widened, width, squeezed, step))
            inputs = width
    return mbconvs(32, stages, 1280)


def convnext(blocks, widths, second):
    """Liu et al. (2022), section 2.2; Woo et al. (2023), section 3."""
    inputs, side, rows, shapes = 3, 224, [], []
    norms, biases = [widths[0], widths[-1]], 0
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        step = 4 if i == 0 else 2
        side //= step
        rows, biases = [*rows, (step, inputs, width, 1, side)], biases + width
        norms += [inputs] * (i > 0)
        block = [(7, width, width, width, side), (1, width, 4 * width, 1, side)]
        rows += count * [*block, (1, 4 * width, width, 1, side)]
        norms += count * [width, *[4 * width] * second]
        biases += count * (6 * width + width * (not second))
        inputs = width
        shapes.append(square(side, width))
    taps = tapped(shapes[0], shapes, shapes[-1], pre=False)
    return Sheet(rows, inputs, taps, norms, biases)


def densenet(blocks, growth):
    """Huang et al. (2017), table 1."""
    inputs, side, shapes = 2 * growth, 56, []
    rows, norms = [(7, 3, inputs, 1, 112)], [inputs]
    for i, count in enumerate(blocks):
        if i:
            norms, rows = [*norms, inputs], [*rows, (1, inputs, inputs // 2, 1, side)]
            inputs, side = inputs // 2, side // 2
        for _ in range(count):
            rows += [(1, inputs, 4 * growth, 1, side), (3, 4 * growth, growth, 1, side)]
            norms += [inputs, 4 * growth]
            inputs += growth
        shapes.append(square(side, inputs))
    taps = tapped(square(112, 2 * growth), shapes, shapes[-1], pre=False)
    return Sheet(rows, inputs, taps, [*norms, inputs])


def regnet(blocks, widths, group, squeezes):
    """Radosavovic et al. (2020), section 3.1 and table 5."""
    inputs, side, shapes = 32, 112, []
    rows, norms, biases = [(3, 3, 32, 1, side)], [32], 0
    for count, width in zip(blocks, widths, strict=True):
        rows, norms = [*rows, (1, inputs, width, 1, side // 2)], [*norms, width]
        for j in range(count):
            rows += [(1, inputs, width, 1, side)]
            side = side // 2 if j == 0 else side
            rows += [
                (3, width, width, width // group, side),
                (1, width, width, 1, side),
            ]
            norms += 3 * [width]
            if squeezes:
                squeezed = round(inputs / 4)
                rows += [(1, width, squeezed, 1, 1), (1, squeezed, width, 1, 1)]
                biases += squeezed + width
            inputs = width
        shapes.append(square(side, width))
    taps = tapped(square(112, 32), shapes, shapes[-1])
    return Sheet(rows, inputs, taps, norms, biases)


class ViTSheet(NamedTuple):
    """Dosovitskiy et al. (2021), equations 1 to 4; Touvron et al. (2021), table 1."""

    width: int
    patch: int
    side: int
    heads: int  # of classes, not of attention
    registers: int = 0
    scales: bool = False

    @property
    def tokens(self):
        return (self.side // self.patch) ** 2 + self.heads + self.registers

    def parameters(self, classes):
        d = self.width
        block = 3 * d * d + 3 * d + d * d + d + 8 * d * d + 5 * d + 4 * d
        embedding = 3 * self.patch**2 * d + d + (self.heads + self.tokens) * d
        embedding -= self.heads * d * (self.registers > 0)  # they have no positions
        block += 2 * d * self.scales
        return embedding + 12 * block + 2 * d + self.heads * (d + 1) * classes

    def macs(self, classes):
        d, n = self.width, self.tokens
        patches = n - self.heads - self.registers
        attention = 2 * n * n * d  # scores, and values mixed by them
        block = 12 * n * d * d + attention
        return 3 * self.patch**2 * d * patches + 12 * block + self.heads * d * classes

    @property
    def taps(self):
        names = ["stem", *(f"stage{i}" for i in range(1, 13))]
        taps = dict.fromkeys(names, (self.tokens, self.width)) | {
            "pooled": (self.width,)
        }
        if self.heads == 2:
            taps["distilled_pooled"] = (self.width,)
        return taps


SHEETS = {
    **{f"resnet{d}": resnet(d) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": resnet(d, (32, 64, 128, 256)) for d in (8, 32)},
    **{
        f"wrn_{d}_{k}": wrn(d, k)
        for d, k in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2))
    },
    "vgg8": vgg(1, 1, 1, 1, 1),
    "vgg11": vgg(1, 1, 2, 2, 2),
    "vgg13": vgg(2, 2, 2, 2, 2),
    "vgg16": vgg(2, 2, 3, 3, 3),
    "vgg19": vgg(2, 2, 4, 4, 4),
    "vgg11_bn": vgg_bn(1, 1, 2, 2, 2),
    "vgg13_bn": vgg_bn(2, 2, 2, 2, 2),
    "vgg16_bn": vgg_bn(2, 2, 3, 3, 3),
    "vgg19_bn": vgg_bn(2, 2, 4, 4, 4),
    "mobilenet_v1": mobilenet_v1(1),
    "mobilenet_v1_050": mobilenet_v1(0.5),
    "mobilenet_v2": mobilenet_v2(0.5, 32, (1, 1, 2, 2, 1, 2, 1), True),
    "mobilenet_v2_imagenet": mobilenet_v2(1, 224, (1, 2, 2, 2, 1, 2, 1), False),
    "shufflenet_v1": shufflenet_v1(),
    "shufflenet_v2": shufflenet_v2(True),
    "shufflenet_v2_imagenet": shufflenet_v2(False),
    "resnet18": imagenet_resnet((2, 2, 2, 2), False, False),
    "resnet34": imagenet_resnet((3, 4, 6, 3), False, False),
    "resnet50": imagenet_resnet((3, 4, 6, 3), True, False),
    "resnext50_32x4d": imagenet_resnet((3, 4, 6, 3), True, False, 32, 4),
    "wide_resnet50_2": imagenet_resnet((3, 4, 6, 3), True, False, 1, 128),
    "resnet18_cifar": imagenet_resnet((2, 2, 2, 2), False, True),
    "resnet50_cifar": imagenet_resnet((3, 4, 6, 3), True, True),
    "mobilenet_v3_small": mobilenet_v3_small(),
    "mobilenet_v3_large": mobilenet_v3_large(),
    "mobilenetv3_small_100": mobilenet_v3_small(),
    "mobilenetv3_large_100": mobilenet_v3_large(),
    "efficientnet_b0": efficientnet(squeezes=True),
    "efficientnet_lite0": efficientnet(),
    "tf_efficientnet_lite0": efficientnet(),
    "tf_efficientnet_lite1": efficientnet(blocks=(1, 3, 3, 4, 4, 5, 1)),
    "tf_efficientnet_lite2": efficientnet(
        (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)
    ),
    "tf_efficientnet_lite3": efficientnet(
        (24, 32, 48, 96, 136, 232, 384), (1, 3, 3, 5, 5, 6, 1)
    ),
    "tf_efficientnet_lite4": efficientnet(
        (24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1)
    ),
    "convnext_tiny": convnext((3, 3, 9, 3), (96, 192, 384, 768), False),
    "convnextv2_atto": convnext((2, 2, 6, 2), (40, 80, 160, 320), True),
    "densenet121": densenet((6, 12, 24, 16), 32),
    "regnet_y_400mf": regnet((1, 3, 6, 6), (48, 104, 208, 440), 8, True),
    "regnet_x_400mf": regnet((1, 2, 7, 12), (32, 64, 160, 400), 16, False),
    "vit_tiny": ViTSheet(192, 4, 32, 2),
    "deit_tiny": ViTSheet(192, 16, 224, 2),
    "deit_small": ViTSheet(384, 16, 224, 2),
    "vit_base": ViTSheet(768, 16, 224, 1),
    "vit_small_patch16_224": ViTSheet(384, 16, 224, 1),
    "vit_small_patch14_dinov2": ViTSheet(384, 14, 224, 1, 0, True),
    "vit_small_patch14_reg4_dinov2": ViTSheet(384, 14, 224, 1, 4, True),
}

IMAGENET = {
    "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    "vit_small_patch16_224", "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "convnext_tiny", "convnextv2_atto", "densenet121", "regnet_y_400mf",
    "regnet_x_400mf",
    "mobilenet_v1", "mobilenet_v1_050", "mobilenet_v2_imagenet",
    "shufflenet_v2_imagenet", "resnet18", "resnet34", "resnet50", "deit_tiny",
    "deit_small", "vit_base", "resnext50_32x4d", "wide_resnet50_2",
    "mobilenet_v3_small", "mobilenet_v3_large", "mobilenetv3_small_100",
    "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_lite0",
    *(f"tf_efficientnet_lite{i}" for i in range(5)),
}  # fmt: skip
