"""The arithmetic of training: fp32, TF32, bf16, or fp16 with loss scaling, behind one interface.

The order of a step, which keeps a non-finite gradient from reaching the weights (an overflow on
one rank is everywhere after the average, so all ranks skip together):

    with precision.autocast():
        loss = criterion(model(images), labels)
    precision.backward(loss)
    ...                               # average the gradients over ranks
    precision.unscale_(optimizer)     # only to read them
    precision.step(optimizer)         # clips them if so asked
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.ranks.world import World
from pipeline.system.failure import TrainingError
from pipeline.train.optimizer import clip_

Mode = Literal["off", "tf32", "bf16", "fp16"]
_DTYPES = {"off": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_TF32_SINCE = (8, 0)
"""Compute capability of the first GPUs that have TF32."""

log = logging.getLogger("trainyard")


class TrainingDiverged(TrainingError):
    """Training cannot continue: its numbers are no longer finite."""


class Precision:
    """The arithmetic of forward, backward and update; parameters stay fp32 in every mode.

    Only fp16 scales the loss: bf16 has the exponent range of fp32. Skipped steps are counted on
    the device, and what is read of them every `max_skipped_steps` steps was copied some steps
    before, so that nothing waits for the device: `GradScaler` itself does not with the fused SGD
    of GPUs, nor with LARS and LAMB.
    """

    def __init__(
        self, mode: Mode, device: torch.device, init_scale: float = 2.0**16,
        max_skipped_steps: int = 20, clip_norm: float | None = None,
    ) -> None:  # fmt: skip
        """Sets up `mode` on `device`, where the model lies.

        Args:
            mode: dtype of the matrix and convolution arithmetic; "off" is fp32 throughout, "tf32"
                fp32 of whose 23 bits of mantissa products use 10.
            init_scale: what the loss is first multiplied by (fp16).
            max_skipped_steps: how many steps in a row may be skipped (fp16). It is checked every
                that many steps, so the run ends after n to 2n - 1 skips in a row; on a GPU after
                up to n / 2 more.
            clip_norm: the most that the norm of all gradients may be in an update; None: whatever
                it is.

        Raises `ValueError` if `device` has no TF32 and `mode` asks for it.
        """
        if mode == "tf32":
            _require_tf32(device)
        self.mode = mode
        self._device = device
        is_fp16 = mode == "fp16"
        self._scaler = torch.amp.GradScaler(device.type, init_scale=init_scale, enabled=is_fp16)
        self._max_skipped_steps = max_skipped_steps
        self._clip_norm = clip_norm
        self._unscaled = False
        self._one = torch.ones((), device=device)
        self._steps = 0
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        # Steps from the copy of the count until it is looked at.
        self._delay = max_skipped_steps // 2 if device.type == "cuda" else 0
        self._seen: _Copied | None = None
        if is_fp16 and device.type == "cpu":
            log.warning("fp16 on a CPU is about 10 times slower than bf16: it is for tests")

    def autocast(self, cached: bool = True) -> torch.autocast:
        """A context manager for the forward pass and the loss; not for the backward pass. `cached`:
        cast weights serve until it ends.

        On a GPU it also says whether products may be in TF32, for this process from now on, so
        that it holds for the backward pass too: torch allows it to convolutions unasked.
        """
        if self._device.type == "cuda":
            allowed = self.mode == "tf32"
            torch.backends.cudnn.allow_tf32 = allowed
            torch.backends.cuda.matmul.allow_tf32 = allowed
        dtype = _DTYPES[self.mode]
        return torch.autocast(
            self._device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=cached
        )

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` times the scale to those that are there."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the scale; raises `RuntimeError` the second time since the last
        step (fp16)."""
        self._scaler.unscale_(optimizer)
        self._unscaled = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscales unless done, clips if so asked, and updates the parameters unless a gradient is
        not finite (fp16).

        The gradients must be averaged over ranks already. `optimizer` holds `param_names`, as
        `build_optimizer` makes it. Raises `TrainingDiverged`, on all ranks in the same step, when
        too many were skipped in a row.
        """
        if self._clip_norm is not None:
            if not self._unscaled:
                self.unscale_(optimizer)
            clip_(optimizer, self._clip_norm)
        self._unscaled = False
        before = self._device_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        if not self._scaler.is_enabled():
            return
        # update() lowers the scale if and only if the step was skipped.
        skipped = self._device_scale() < before
        self._skipped += skipped
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * skipped
        self._steps += 1
        since = self._steps % self._max_skipped_steps
        if since == 0:
            self._seen = _Copied(self._skipped_in_a_row)
        if since == self._delay and self._seen is not None:
            self._check(self._seen.value(), optimizer)
            self._seen = None

    @property
    def scale(self) -> float:
        """What the loss is multiplied by; 1 unless fp16. A host sync."""
        return float(self._scaler.get_scale())

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the start of the run. A host sync."""
        return int(self._skipped)

    @property
    def skipped_in_a_row(self) -> int:
        """Steps skipped since the last one that was not. A host sync."""
        return int(self._skipped_in_a_row)

    def state_dict(self) -> dict[str, Any]:
        """Mode, scale, growth tracker and counters as plain numbers and strings. A host sync."""
        return {
            "mode": self.mode,
            "scaler": self._scaler.state_dict(),
            "steps": self._steps,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict()` was taken, bit for bit. Raises `ValueError` if that was in
        another mode."""
        if state["mode"] != self.mode:
            raise ValueError(
                f"optim.amp={self.mode} differs from {state['mode']}, which the checkpoint was "
                f"trained with: set optim.amp to {state['mode']}"
            )
        self._scaler.load_state_dict(state["scaler"])
        self._steps = state["steps"]
        self._skipped.fill_(state["skipped_steps"])
        self._skipped_in_a_row.fill_(state["skipped_in_a_row"])
        since = self._steps % self._max_skipped_steps
        if self._steps >= self._max_skipped_steps and since < self._delay:
            # The check that was under way, of the count as it was then.
            self._seen = _Copied(self._skipped_in_a_row - since)

    def _device_scale(self) -> Tensor:
        # scale() is GradScaler's only public way to its scale that does not wait for the device.
        scaled: Tensor = self._scaler.scale(self._one)
        return scaled

    def _check(self, in_a_row_before: int, optimizer: torch.optim.Optimizer) -> None:
        if in_a_row_before < self._max_skipped_steps:
            return
        in_a_row = self.skipped_in_a_row  # host sync
        if in_a_row >= self._max_skipped_steps:
            raise TrainingDiverged(
                f"{in_a_row} steps in a row were skipped, down to a loss scale of {self.scale:g}: "
                f"the gradient of {_first_non_finite_gradient(optimizer)} is not finite; lower "
                "optim.base_lr or set optim.amp to bf16"
            )


class _Copied:
    """A whole number on the device, on its way to the host."""

    def __init__(self, number: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if number.is_cuda:
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._number = number.clone()

    def value(self) -> int:
        """Waits only if the device has fallen behind by all the steps since."""
        if self._event is not None and not self._event.query():  # type: ignore[no-untyped-call]
            self._event.synchronize()
        return int(self._number)


def _require_tf32(device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.get_device_capability(device) >= _TF32_SINCE:
        return
    found = torch.cuda.get_device_name(device) if on_gpu else f"the device is {device.type}"
    raise ValueError(
        f"optim.amp=tf32 needs an NVIDIA GPU of compute capability 8.0 or later and {found}"
        f"{' has less' if on_gpu else ''}; set optim.amp=off for fp32, or bf16"
    )


def _first_non_finite_gradient(optimizer: torch.optim.Optimizer) -> str:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return str(name)
    raise AssertionError("a step was skipped, but every gradient is finite")


def require_finite_loss(
    found: tuple[int, float] | None, total_steps: int, lr: Callable[[int], float], world: World
) -> None:
    """Collective. Ends the run on all ranks together when any rank saw a non-finite loss.

    `found` is (step, loss) of this rank's first one. The earliest over ranks is named, with the
    `lr` of its step: one step later the average has carried it everywhere.
    """
    (latest_start,) = world.maximum([total_steps - found[0] if found else 0])
    if latest_start == 0:
        return
    error = None
    if found is not None and found[0] == total_steps - latest_start:
        step, loss = found
        error = TrainingError(
            f"the loss is {loss} at step {step} with lr {lr(step):g}; lower optim.base_lr or "
            "lengthen schedule.warmup_epochs, and start again from the last checkpoint"
        )
    world.raise_together(error)
