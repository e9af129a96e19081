"""What every run of the norm kernels is held against: the same layer in float64 autograd.

Used by the tests that run the kernels in Triton's interpreter and by those that need a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.kernels import plan
from pipeline.model.kernels.ops import backward_pass, forward_pass
from pipeline.model.kernels.tiling import Tiling

MOMENTUM, EPS = 0.1, 1e-5


@dataclass(frozen=True)
class Case:
    """One call of the kernels. `kind` is what is added: nothing, z, or norm(z)."""

    channels: int
    size: tuple[int, int, int]  # N, H, W
    dtype: torch.dtype = torch.float32
    kind: Literal["plain", "add", "projection"] = "plain"
    relu: bool = True
    train: bool = True
    fork: bool = False  # whether a second gradient comes
    mean: float = 0.5  # of the activations; their standard deviation is 1
    device: str = "cpu"

    def __str__(self) -> str:
        words = [str(self.channels), str(self.dtype).removeprefix("torch."), self.kind]
        return "-".join(words + ["train" if self.train else "eval"])


@dataclass(frozen=True)
class Tensors:
    """What goes in."""

    x: Tensor
    z: Tensor
    dy: Tensor
    dy2: Tensor
    parameters: list[Tensor]
    running: list[Tensor]


def tensors(case: Case) -> Tensors:
    """Drawn from a fixed seed; activations in the case's dtype, channels-last."""
    generator = torch.Generator().manual_seed(case.channels)
    n, h, w = case.size

    def activation(mean: float) -> Tensor:
        drawn = torch.randn(n, case.channels, h, w, generator=generator) + mean
        return drawn.to(case.device, case.dtype).contiguous(memory_format=torch.channels_last)

    def vector(low: float) -> Tensor:
        return (torch.rand(case.channels, generator=generator) + low).to(case.device)

    norms = 2 if case.kind == "projection" else 1
    return Tensors(
        activation(case.mean), activation(-0.2), activation(0.1), activation(0.0),
        [vector(-0.5) for _ in range(2 * norms)],
        [vector(0.5) for _ in range(2 * norms)],
    )  # fmt: skip


def with_kernels(case: Case, given: Tensors, tiling: Tiling | None = None) -> dict[str, Tensor]:
    """Forward and backward in the kernels; every result by name, and the ReLU's mask as `mask`."""
    running = [value.clone() for value in given.running]
    norms, added = len(running) // 2, case.kind != "plain"
    with _tiled(tiling):
        y, mask, stats = forward_pass(
            given.x, given.z if added else None, given.parameters, running, [MOMENTUM] * norms,
            [EPS] * norms, case.relu, case.train, True,
        )  # fmt: skip
        gradients = backward_pass(
            given.dy, given.dy2 if case.fork else None, given.x,
            given.z if case.kind == "projection" else None, given.parameters, stats, mask, added,
            case.relu, case.train,
        )  # fmt: skip
    count = len(given.parameters)
    found = {"y": y, "mask": mask, "dx": gradients[count]}
    if added:
        found["dz"] = gradients[count + 1]
    return found | _numbered("dparameter", gradients[:count]) | _numbered("running", running)


@contextmanager
def _tiled(tiling: Tiling | None) -> Iterator[None]:
    if tiling is None:
        yield
        return
    with patch.object(plan, "choose_tiling", lambda *_: tiling), planned_anew():
        yield


@contextmanager
def planned_anew() -> Iterator[None]:
    """Makes the launches of the body afresh, and forgets them after it."""
    try:
        forget_plans()
        yield
    finally:
        forget_plans()


def forget_plans() -> None:
    """Forgets all launches that were made."""
    plan.forward.cache_clear()
    plan.backward.cache_clear()


def _numbered(name: str, values: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}{i}": value for i, value in enumerate(values)}


def in_float64(case: Case, given: Tensors) -> dict[str, Tensor]:
    """The same results from PyTorch's operators and autograd in float64, from the same inputs."""
    x, z, *parameters = (
        value.detach().double().requires_grad_() for value in (given.x, given.z, *given.parameters)
    )
    running = [value.double() for value in given.running]
    y = _before_relu(case, x, z, parameters, running)
    y = y.relu() if case.relu else y
    y.backward(given.dy.double() + (given.dy2.double() if case.fork else 0.0))
    wanted = {"y": y.detach(), "dx": x.grad}
    if case.kind != "plain":
        wanted["dz"] = z.grad
    gradients = [parameter.grad for parameter in parameters]
    return wanted | _numbered("dparameter", gradients) | _numbered("running", running)


def _before_relu(
    case: Case, x: Tensor, z: Tensor, parameters: list[Tensor], running: list[Tensor]
) -> Tensor:
    def norm(value: Tensor, first: int) -> Tensor:
        at = slice(first, first + 2)
        return F.batch_norm(value, *running[at], *parameters[at], case.train, MOMENTUM, EPS)

    y = norm(x, 0)
    if case.kind == "plain":
        return y
    return y + (norm(z, 2) if case.kind == "projection" else z)


def without_doubt(case: Case, given: Tensors) -> Tensors:
    """No gradient comes in where float32 and float64 may see another sign before the ReLU."""
    before = _before_relu(
        case, given.x.double(), given.z.double(), [p.double() for p in given.parameters],
        [value.double() for value in given.running],
    )  # fmt: skip
    for gradient in (given.dy, given.dy2):
        gradient[before.abs() < 1e-5] = 0.0
    return given


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite if something is NaN."""
    difference = (found.double() - wanted.double()).abs().max()
    share = float(difference / wanted.double().abs().max())
    return share if share == share else float("inf")


# fp32 arithmetic; 9e-7 was seen. (Tiles of hundreds of rows lose more in the interpreter, which
# sums their rows one by one.)
SUMS = 2e-6
# Rounding to nearest moves the largest value by half a unit in its last place.
ROUNDING = {torch.float32: SUMS, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def tolerance(case: Case, name: str) -> float:
    """The error allowed for the result `name`."""
    if name.startswith(("dparameter", "running")):
        return SUMS
    # What is added up or passed to a norm of z is rounded on the way.
    twice = name == "dx" and case.kind != "plain" or name == "dz" and case.kind == "projection"
    return (2 if twice or case.fork else 1) * ROUNDING[case.dtype] + SUMS


def require_close(case: Case, tiling: Tiling | None = None) -> dict[str, float]:
    """Asserts that the kernels compute `case` as float64 does; the errors by name."""
    given = without_doubt(case, tensors(case))
    found, wanted = with_kernels(case, given, tiling), in_float64(case, given)
    mask = found.pop("mask")
    assert found.keys() == wanted.keys()
    errors = {name: error(found[name], wanted[name]) for name in wanted}
    wrong = {n: e for n, e in errors.items() if not e <= tolerance(case, n)}
    assert not wrong, f"{case}: errors {wrong}"
    for name in ("y", "dx", "dz"):
        if name in found:
            assert found[name].dtype == case.dtype
            assert found[name].is_contiguous(memory_format=torch.channels_last)
    if case.relu and case.kind != "plain":
        passed = found["y"].permute(0, 2, 3, 1).flatten(0, 2) > 0
        assert torch.equal(unpacked(mask, case.channels), passed), "mask and y differ"
    return errors


def unpacked(mask: Tensor, channels: int) -> Tensor:
    """(M, ceil(C / 8)) bytes -> (M, C) bool; channel c is bit c % 8."""
    bits = mask[:, :, None] >> torch.arange(8, device=mask.device) & 1
    return bits.flatten(1)[:, :channels].bool()
