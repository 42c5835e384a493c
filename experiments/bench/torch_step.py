"""The training steps of `step_speed` in PyTorch, as its users make them fast.

`torch.compile` with CUDA graphs, bfloat16 by autocast, channels last, a fused
optimiser, a teacher under `no_grad`, the data as bytes on the device.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDE = (32, 64, 128, 256)
RESNETS: dict[str, tuple[int, tuple[int, ...]]] = {
    "resnet20": (20, (16, 16, 32, 64)),
    "resnet56": (56, (16, 16, 32, 64)),
    "resnet8x4": (8, WIDE),
    "resnet32x4": (32, WIDE),
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """Make the layers."""
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.branch = nn.Sequential(
            conv(inputs, width, stride=stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, width),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            project = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the branch to the shortcut."""
        return F.relu(self.branch(x) + self.shortcut(x))


def resnet(depth: int, widths: tuple[int, ...], classes: int) -> nn.Module:
    """Build the network of `jaxkd.models.resnet`."""
    stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for i, (inputs, width) in enumerate(itertools.pairwise(widths)):
        layers.append(Block(inputs, width, 1 if i == 0 else 2))
        layers += [Block(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooled, nn.Linear(widths[-1], classes))


def network(name: str, classes: int) -> nn.Module:
    """Build a network by its name in jaxkd's zoo."""
    if name in RESNETS:
        return resnet(*RESNETS[name], classes)
    import torchvision  # ImageNet's networks alone need it

    return getattr(torchvision.models, name)(num_classes=classes)


def block(
    name: str, case: dict[str, Any], *, tiny: bool = False
) -> tuple[Callable[[], None], dict[str, Any]]:
    """Compile the training of a case, "TEACHER-STUDENT" or a network alone.

    Returns:
      What takes the case's steps, and what to say of it.
    """
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher_name, _, student_name = name.rpartition("-")
    to: dict[str, Any] = {"device": where, "memory_format": torch.channels_last}
    student = network(student_name, case["classes"]).to(**to).train()
    teacher = None
    if teacher_name:
        teacher = network(teacher_name, case["classes"]).to(**to).eval()
    size, n = case["batch_size"], case["steps"] * case["batch_size"]
    height, width, channels = case["shape"]
    images = torch.randint(
        0, 256, (n, channels, height, width), dtype=torch.uint8, device=where
    ).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, case["classes"], (n,), device=where)
    tx = torch.optim.SGD(
        student.parameters(), lr=1e-3, momentum=0.9, fused=where.type == "cuda"
    )

    def objective(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = (image.float() / 255 - 0.5) / 0.25
        with torch.autocast(where.type, torch.bfloat16):
            s = student(x)
            t = None
            if teacher is not None:
                with torch.no_grad():
                    t = teacher(x)
        loss = F.cross_entropy(s.float(), label)
        if t is None:
            return loss
        temperature, hard, soft = case["kd"]
        kl = F.kl_div(
            F.log_softmax(s.float() / temperature, -1),
            F.softmax(t.float() / temperature, -1),
            reduction="batchmean",
        )
        return hard * loss + soft * temperature**2 * kl

    mode = "reduce-overhead" if where.type == "cuda" else "default"
    compiled = objective if tiny else torch.compile(objective, mode=mode)

    def run() -> None:
        for rows in torch.randperm(n, device=where).split(size):
            loss = compiled(images[rows], labels[rows])
            loss.backward()
            tx.step()
            tx.zero_grad(set_to_none=True)
        if where.type == "cuda":
            torch.cuda.synchronize()

    run()  # compiles
    name_of = torch.cuda.get_device_name() if where.type == "cuda" else "cpu"
    about = {"torch": torch.__version__, "mode": mode, "torch_device": name_of}
    return run, about
