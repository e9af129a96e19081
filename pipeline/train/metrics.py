"""Counts and times between two lines of metrics, and the line made from all ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.ranks.heartbeat import Heartbeat
from pipeline.train.phases import PHASES, Phases

_GPU_MEMORY = ("gpu_memory_torch_bytes", "gpu_memory_dali_bytes", "gpu_memory_other_bytes")
_GATHERED = (
    "loss", "top1", "top5", "images", "timed_images", "timed_sec", "paused_sec", *PHASES,
    "heartbeat_sec", *_GPU_MEMORY, "run_is_taken",
)  # fmt: skip
"""Each rank's part of a line: `TrainWindow.sums`, `TrainWindow.timings()` and so on."""


def counts_top5(classes: int) -> bool:
    """Whether top-5 says anything of a network with so many classes: with five or fewer all of them
    are among the five best, and it is nowhere computed or said."""
    return classes > 5


def predicted_classes(scores: Tensor) -> Tensor:
    """Predictions (B,) int64: the class with the highest of `scores` (B, classes), the first of
    ties.

    Every count of hits and every named mistake uses this: bf16 often gives two classes the same
    score, of which `topk` may choose the other.
    """
    return scores.argmax(dim=1)


def among_five(scores: Tensor, predicted: Tensor, labels: Tensor) -> Tensor:
    """Whether each label is among the five best, (B,) bool; `predicted` (B,) is one of these.

    `labels` (B,) int64; never for a negative one. There are at least five classes.
    """
    best = scores.topk(5, dim=1).indices
    return (best == labels.unsqueeze(1)).any(dim=1) | (predicted == labels)


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct answers in a batch, int64 on the device: (2,), top-1 and top-5, or (1,) where
    `counts_top5` says no.

    `logits` (B, classes), `labels` (B,) int64; a negative label (padding) counts in neither.
    """
    predicted = predicted_classes(logits)
    hits = (predicted == labels).sum()
    if not counts_top5(logits.shape[1]):
        return hits.unsqueeze(0)
    return torch.stack([hits, among_five(logits, predicted, labels).sum()])


def balanced_top1(hits: Tensor, images: Tensor) -> float | None:
    """The mean over classes with images of their top-1; of classes of one size that is top-1.

    `hits` and `images` (classes,) int64 on the CPU. None where there are no images.
    """
    some = images > 0
    return float((hits[some].double() / images[some]).mean()) if bool(some.any()) else None


@dataclass(frozen=True)
class Validation:
    """One validation: fractions over exactly `images` images, each counted once.

    `top1_correct` and `top5_correct` are the integer counts, the latter None where `counts_top5`
    says no; `epoch`, `step` and `position` say where in the training it was. `balanced_top1` is
    that function's, None where it was not counted. `ema` is that of the weights' moving average
    over the same images, if there is one.
    """

    images: int
    top1_correct: int
    top5_correct: int | None
    loss: float
    epoch: int = 0
    step: int = 0
    position: int = 0
    balanced_top1: float | None = None
    ema: Validation | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Validation:
        """The inverse of `dataclasses.asdict`; versions before this one had fewer fields."""
        ema = state.get("ema")
        return cls(**{**state, "ema": None if ema is None else cls(**ema)})

    def at(self, epoch: int, step: int, position: int) -> Validation:
        """The same at this place in the training."""
        return replace(self, epoch=epoch, step=step, position=position)

    @property
    def deciding(self) -> Validation:
        """The one by which a network is chosen and judged: that of the average if there is one."""
        return self.ema or self

    @property
    def top1(self) -> float:
        """Share of images whose best score is their class."""
        return self.top1_correct / self.images

    @property
    def top5(self) -> float | None:
        """Share of images whose class is among the five best scores; None as `top5_correct` is."""
        return None if self.top5_correct is None else self.top5_correct / self.images

    @property
    def accuracies(self) -> dict[str, float]:
        """The shares that there are, by their names in metrics.jsonl."""
        found = {"top1": self.top1, "top5": self.top5, "balanced_top1": self.balanced_top1}
        if self.ema is not None:
            found |= {"ema_top1": self.ema.top1, "ema_top5": self.ema.top5}
        return {name: share for name, share in found.items() if share is not None}

    def metrics(self) -> dict[str, int | float]:
        """The result as a line of metrics.jsonl."""
        line: dict[str, int | float] = {
            "epoch": self.epoch, "step": self.step, "position": self.position, "loss": self.loss,
            **self.accuracies, "images": self.images,
        }  # fmt: skip
        return line if self.ema is None else {**line, "ema_loss": self.ema.loss}


def is_best(history: Sequence[Validation]) -> bool:
    """Whether no earlier validation of `history` was better than its last."""
    correct = [result.deciding.top1_correct for result in history]
    return correct[-1] == max(correct)


class GpuMemory:
    """GPU memory by owner. Create it once the model is on the GPU, before DALI builds a graph. Does
    nothing on a CPU.

    PyTorch counts its own memory. DALI (2.4) does not report what its pools and decoders hold: its
    `executor_statistics` are of operators' outputs only, and empty with the dynamic executor, which
    hands batches over without a copy. So its part is measured: what the GPU has lost to others than
    PyTorch until `dali_is_ready`. Up to there nothing else allocates: DALI decodes a batch of the
    largest images of both sets by the validations' graph (`preflight`) and builds the training's;
    what a step that is tried before takes is left out (`not_of_dali`). What DALI takes later, when
    pools grow, cannot be distinguished from NCCL's buffers and the kernels that CUDA loads at their
    first use: it counts with the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._before = self._of_others()
        self._dali: float | None = None

    def dali_is_ready(self) -> None:
        """Records DALI's memory before the first step. Only the first call counts."""
        if self._dali is None:
            self._dali = max(0.0, self._of_others() - self._before)

    @contextmanager
    def not_of_dali(self) -> Iterator[None]:
        """Leaves what others than PyTorch take in the body out of DALI's part."""
        before = self._of_others()
        yield
        self._before += self._of_others() - before

    def held_bytes(self, dali_decodes: bool) -> list[float]:
        """The most that PyTorch has held so far, what DALI holds, and what all others hold now.

        Others are the CUDA context, NCCL, and other programs on that GPU. `dali_decodes`: whether
        DALI works on it at all. Zeros on a CPU.
        """
        if self._device is None:
            return [0.0, 0.0, 0.0]
        dali = (self._dali or 0.0) if dali_decodes else 0.0
        most = float(torch.cuda.max_memory_reserved(self._device))
        return [most, dali, max(0.0, self._of_others() - dali)]

    def _of_others(self) -> float:
        """Memory in use on the GPU now, except PyTorch's own."""
        if self._device is None:
            return 0.0
        free, total = torch.cuda.mem_get_info(self._device)
        return float(total - free - torch.cuda.memory_reserved(self._device))


class TrainWindow:
    """Loss and hits of the micro-batches since the last line of metrics.

    Each micro-batch writes one row on the device. Rows come to the host at log and save steps
    only, and are summed there one after the other in float64: a sum that was saved and restored
    has the same bits as an uninterrupted one.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows = torch.zeros(rows, 3, device=device)
        self._steps: list[int] = []
        self.sums = torch.zeros(4, dtype=torch.float64)
        """loss * images, top-1 hits, top-5 hits (0 where they are not counted), images: of this
        rank, since the last line."""
        self._images: list[int] = []
        self.memory = GpuMemory(device)
        self._start()

    @torch.no_grad()
    def add(self, step: int, loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Adds one micro-batch: mean `loss` (scalar), `logits` (B, classes), `labels` (B,).

        Returns its `correct_counts`.
        """
        counts = correct_counts(logits, labels)
        row = self._rows[len(self._steps)]
        row[0] = loss
        row[1 : 1 + len(counts)] = counts
        self._steps.append(step)
        self._images.append(len(labels))
        return counts

    def fold(self) -> tuple[int, float] | None:
        """Brings the rows to the host. Returns (step, loss) of the first non-finite loss."""
        rows = self._rows[: len(self._steps)].tolist()  # host sync
        not_finite = None
        for step, images, (loss, top1, top5) in zip(self._steps, self._images, rows, strict=True):
            if not_finite is None and not math.isfinite(loss):
                not_finite = (step, loss)
            self.sums += torch.tensor([loss * images, top1, top5, images], dtype=torch.float64)
            self._timed_images += images
        self._steps.clear()
        self._images.clear()
        return not_finite

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the body, in which a run saves or validates, out of the speed."""
        begun = time.perf_counter()
        yield
        self.pause(time.perf_counter() - begun)

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` out of the speed."""
        self._started += seconds
        self._paused_sec += seconds

    def timings(self) -> tuple[int, float, float]:
        """Images since the start or the last line, their seconds, and the seconds paused."""
        return self._timed_images, time.perf_counter() - self._started, self._paused_sec

    def restart(self) -> None:
        """Begins a new window."""
        self.sums.zero_()
        self._start()

    def start_clock(self) -> None:
        """Starts measuring the speed: the loader is open, and the first step comes next."""
        self.memory.dali_is_ready()
        self._start()

    def _start(self) -> None:
        self._timed_images = 0
        self._paused_sec = 0.0
        self._started = time.perf_counter()


def of_this_rank(
    window: TrainWindow, phases: Phases, heartbeat: Heartbeat, dali_on_gpu: bool,
    run_is_taken: bool = False,
) -> Tensor:  # fmt: skip
    """(n,) float64: what this rank adds to the line of metrics, and whether it has found another
    start in the run. A host sync on a GPU."""
    memory = window.memory.held_bytes(dali_decodes=dali_on_gpu)
    timed = [*window.timings(), *phases.seconds(), heartbeat.take_longest_sec(), *memory]
    timed.append(float(run_is_taken))
    return torch.cat([window.sums, torch.tensor(timed, dtype=torch.float64)])


def run_is_taken(everyone: Tensor) -> bool:
    """Whether any rank has found another start in the run; `everyone` as `of_all_ranks` has it."""
    return bool(everyone[:, -1].any())


def of_all_ranks(everyone: Tensor, top5: bool = True) -> dict[str, float | None]:
    """A line's counts, speeds and times. `everyone` (ranks, n) holds all `of_this_rank`; `top5`
    says whether that was counted.

    loss, top1, top5: of all images since the last line; of mixed images hits are counted on the
        label of the larger share.
    images_per_sec: of the job; time of saving and validating is left out.
    data_wait_sec, data_wait_share: waiting for the loader, mean over ranks; the share is of the
        time without saving and validating, as is communication_share, which is waiting for
        gradients after backward.
    rank_images_per_sec, slowest_images_per_sec, slowest_rank: speed of a rank by itself, that is
        in its time without waiting for other ranks: the mean, the lowest, and whose that is.
        (Ranks take equal steps together: only what they do on their own can differ.)
    share_*: of all the time since the last line, mean over ranks; their sum is 1.
    heartbeat_sec: the longest that any rank was without a heartbeat; the watchdog ends the job at
        run.step_timeout_sec.
    gpu_memory_*_bytes: on a GPU, each the highest of any rank; `GpuMemory` says what is whose.
    """
    of = dict(zip(_GATHERED, everyone.T, strict=True))  # by rank
    total = {name: float(values.sum()) for name, values in of.items()}
    alone_sec = of["timed_sec"] - of["agreement"] - of["communication"]
    speeds = of["timed_images"] / alone_sec.clamp(min=1e-9)
    slowest = int(speeds.argmin())
    spent = {phase: total[phase] for phase in PHASES if phase != "record"}  # that is of the rest
    # On a GPU a save also waits for work that the device's clock counts in another phase.
    whole = max(total["timed_sec"] + total["paused_sec"], sum(spent.values()))
    shares = {f"share_{phase}": sec / whole for phase, sec in spent.items()}
    line: dict[str, float | None] = {
        "loss": total["loss"] / total["images"],
        "top1": total["top1"] / total["images"],
        **({"top5": total["top5"] / total["images"]} if top5 else {}),
        "images_per_sec": total["timed_images"] / (total["timed_sec"] / len(everyone)),
        "data_wait_sec": total["data_wait"] / len(everyone),
        "data_wait_share": total["data_wait"] / total["timed_sec"],
        "communication_share": total["communication"] / total["timed_sec"],
        "rank_images_per_sec": float(speeds.mean()),
        "slowest_images_per_sec": float(speeds[slowest]),
        "slowest_rank": slowest,
        **shares,
        "share_rest": max(0.0, 1.0 - sum(shares.values())),
        "heartbeat_sec": float(of["heartbeat_sec"].max()),
    }
    memory = {name: float(of[name].max()) for name in _GPU_MEMORY}
    return {**line, **memory} if any(memory.values()) else line
