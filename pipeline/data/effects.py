"""What happens to training views beyond their crop: operations on their pixels, and erasing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.augmentations import Augmentation
from pipeline.data.crops import Plan
from pipeline.data.erasing import RandomErasing
from pipeline.data.order import Stream, random_words


@dataclass(frozen=True)
class Effects:
    """What happens to the views of a stream; None: nothing of the kind."""

    augmentation: Augmentation | None = None
    erasing: RandomErasing | None = None

    def planned(self, plan: Plan, seed: int, positions: np.ndarray) -> Plan:
        """`plan` of the images at `positions` (B,), consecutive and rising, with these effects.

        Each has words of its own, so that none changes what another one does.
        """
        first, count = int(positions[0]), len(positions)
        if self.augmentation is not None:
            words_each = self.augmentation.words_per_position
            words = random_words(seed, Stream.AUGMENT_KIND, first, count, words_each)
            operations, strengths = self.augmentation.plan(words, plan.shape)
            plan = dataclasses.replace(plan, operations=operations, strengths=strengths)
        if self.erasing is not None:
            words_each = self.erasing.words_per_position
            words = random_words(seed, Stream.ERASE, first, count, words_each)
            plan = dataclasses.replace(plan, erased=self.erasing.boxes(words, plan.shape))
        return plan


NOTHING = Effects()


def train_effects(config: DataConfig) -> Effects:
    """The effects on training views that the configuration asks for."""
    augmentation = None
    if config.augment == "trivial":
        augmentation = Augmentation("trivial")
    elif config.augment == "rand":
        augmentation = Augmentation(
            "rand", config.augment_ops, config.augment_magnitude, config.augment_std
        )
    erasing = None
    if config.erase > 0:
        erasing = RandomErasing(config.erase, config.erase_area, config.erase_aspect)
    return Effects(augmentation, erasing)
