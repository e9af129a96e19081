"""A training script as one writes it without this program, which `benchmark demo` compares it with:
a DataLoader with workers and Pillow's transforms, DistributedDataParallel over Gloo, channels-last
and autocast, one validation at the end. It loads neither DALI nor Horovod.

Started on every rank with torchrun's variables, as `python -m pipeline.benchmark.plain_script TASK
RESULT`: the JSON of a `Task`, and where rank 0 writes what it measured. The weights go beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from pipeline.benchmark.device import DTYPES
from pipeline.benchmark.transforms import (
    centre_crop,
    normalised,
    random_resized_crop,
    randomly_flipped,
    use_one_thread,
)
from pipeline.config import ModelConfig
from pipeline.model.resnet import build_network
from pipeline.train.optimizer import build_optimizer, set_lr


@dataclass(frozen=True)
class Task:
    """One training: the same network, batch, precision and rates as the program's own."""

    data: str
    """Folder with train/<class>/<image> and val."""
    epochs: int
    images: int
    """Per step and rank."""
    size: int
    area: tuple[float, float]
    val_resize: int
    model: dict[str, Any]
    amp: str
    label_smoothing: float
    momentum: float
    weight_decay: float
    decay_norm_and_bias: bool
    lr: list[float]
    """Learning rate of each step."""
    seed: int
    threads: int
    """Of each rank's model."""
    workers: int
    """Processes of each rank's DataLoader."""
    log_every_steps: int


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """The images below `folder`, whose folders are the classes, each as `view` makes it."""

    def __init__(self, folder: Path, view: Callable[[Image.Image], Image.Image]) -> None:
        self.classes = sorted(one.name for one in folder.iterdir() if one.is_dir())
        self._files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).iterdir())
        ]
        self._view = view

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (3, size, size) float32, normalised; label."""
        path, label = self._files[index]
        with open(path, "rb") as file:
            return normalised(self._view(Image.open(file).convert("RGB"))), label


class Script:
    """The training of one rank."""

    def __init__(self, task: Task) -> None:
        self._task, self._rank, self._size = task, dist.get_rank(), dist.get_world_size()
        torch.manual_seed(task.seed)
        root = Path(task.data)
        train = ImageFiles(root / "train", self._augmented)
        val = ImageFiles(root / "val", self._centre)
        self._sampler: DistributedSampler[Any] = DistributedSampler(train, seed=task.seed)
        self._train: DataLoader[Any] = DataLoader(
            train, task.images, sampler=self._sampler, num_workers=task.workers,
            persistent_workers=task.workers > 0, worker_init_fn=use_one_thread,
        )  # fmt: skip
        # Not DistributedSampler: it repeats images, which would count twice.
        mine = Subset(val, range(self._rank, len(val), self._size))
        self._val: DataLoader[Any] = DataLoader(
            mine, task.images, num_workers=task.workers, worker_init_fn=use_one_thread
        )
        network = build_network(ModelConfig(**task.model), len(train.classes))
        self.model = DistributedDataParallel(network, gradient_as_bucket_view=True)
        self._optimizer = build_optimizer(
            self.model, task.lr[0], task.momentum, task.weight_decay, task.decay_norm_and_bias
        )
        self._step = 0

    def _augmented(self, image: Image.Image) -> Image.Image:
        cut = random_resized_crop(image, self._task.size, self._task.area)
        return randomly_flipped(cut)

    def _centre(self, image: Image.Image) -> Image.Image:
        return centre_crop(image, self._task.val_resize, self._task.size)

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        amp = self._task.amp
        with torch.autocast("cpu", DTYPES.get(amp), enabled=amp != "off"):
            logits: Tensor = model(images.to(memory_format=torch.channels_last))
        return logits.float()

    def train_epoch(self, epoch: int) -> int:
        """Trains one epoch; returns this rank's images."""
        self.model.train()  # type: ignore[no-untyped-call]
        self._sampler.set_epoch(epoch)
        seen = 0
        for images, labels in self._train:
            set_lr(self._optimizer, self._task.lr[min(self._step, len(self._task.lr) - 1)])
            logits = self._logits(self.model, images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self._task.label_smoothing)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._step += 1
            seen += len(images)
            if self._step % self._task.log_every_steps == 0 and self._rank == 0:
                right = float((logits.argmax(1) == labels).float().mean())
                print(f"step {self._step}: loss {float(loss):.3f}, top-1 {right:.1%}", flush=True)
        return seen

    @torch.no_grad()
    def validate(self) -> float:
        """Top-1 of the validation images."""
        self.model.eval()
        counts = torch.zeros(2, dtype=torch.int64)
        for images, labels in self._val:
            right = self._logits(self.model.module, images).argmax(1) == labels
            counts += torch.tensor([int(right.sum()), len(labels)])
        dist.all_reduce(counts)
        return float(counts[0] / counts[1])


def main(argv: list[str]) -> None:
    """One rank of the training."""
    task = Task(**json.loads(argv[0]))
    torch.set_num_threads(task.threads)
    dist.init_process_group("gloo")
    script = Script(task)
    started, images = time.perf_counter(), 0
    for epoch in range(task.epochs):
        images += script.train_epoch(epoch)
    speed = images * dist.get_world_size() / (time.perf_counter() - started)
    top1 = script.validate()
    if dist.get_rank() == 0:
        result = Path(argv[1])
        torch.save(script.model.module.state_dict(), result.with_suffix(".pt"))
        result.write_text(json.dumps({"images_per_sec": speed, "top1": top1}), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
