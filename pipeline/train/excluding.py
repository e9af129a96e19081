"""Which images a run goes on without, the same on every rank."""

from __future__ import annotations

import logging
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pipeline.data.exclusion import Exclusions, Found, read_list, too_many
from pipeline.data.images import ImageSet
from pipeline.ranks.world import World

log = logging.getLogger("trainyard")


class Excluded:
    """The images that a run continues without (data.bad_images=exclude, data.exclude), the same on
    every rank; at most `most` of them.

    In training all ranks agree on what is excluded before any of them uses its next micro-batch,
    and then take up the data at the same place. In validation each rank skips its own bad
    files and the ranks exchange them at the end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.train = Exclusions()
        """Training images, with the positions from which they are left out."""
        self.val: tuple[int, ...] = ()
        """Validation images, which count as wrong unseen, rising."""

    def __repr__(self) -> str:
        """The same text on every rank, for the digest over ranks."""
        return f"Excluded({self.state()})"

    def state(self) -> dict[str, Any]:
        """The exclusions as a checkpoint stores them."""
        return {"train": self.train.rows(), "val": list(self.val)}

    def load(self, state: dict[str, Any]) -> None:
        """Continues with the exclusions in `state`."""
        self.train, self.val = Exclusions(state["train"]), tuple(state["val"])

    def met_in_training(self, found: list[Found], images_per_step: int, world: World) -> None:
        """Collective. Excludes what all ranks together have `found`. Raises `Reported` if that is
        too much."""
        pairs = ((one.image, one.position) for one in found)
        self.train = self.train.failed(pairs, images_per_step)
        self._report("train", found, world)

    def met_in_validation(self, mine: list[Found], world: World) -> None:
        """Collective. Exchanges what each rank skipped in validation."""
        rows = world.gather_objects([astuple(found) for found in mine])
        everyone = [Found(*found) for theirs in rows for found in theirs]
        # Two ranks may have met the same image, one of them in place of another bad one.
        by_image = {found.image: found for found in everyone}
        if by_image:
            self.val = tuple(sorted({*self.val, *by_image}))
            self._report("val", list(by_image.values()), world)

    def listed(
        self, path: Path, train_set: ImageSet, val_set: ImageSet, position: int, world: World
    ) -> None:
        """Collective. Excludes the images of the list data.exclude, from `position` on.

        Raises `Reported` for a list that cannot be read or is of other data, naming both hashes.
        """
        train, val = world.on_rank0(
            lambda: (read_list(path, "train", train_set), read_list(path, "val", val_set))
        )
        new_train = [image for image in train if image not in self.train]
        new_val = [image for image in val if image not in self.val]
        self.train = self.train.listed(new_train, position)
        self.val = tuple(sorted({*self.val, *new_val}))
        for split, images, new in (("train", train_set, new_train), ("val", val_set, new_val)):
            said = f"is in the list {path}"
            found = [Found(i, position, f"the image {images.path(i)} {said}") for i in new]
            self._report(split, found, world)

    def _report(self, split: str, found: list[Found], world: World) -> None:
        """Collective. Logs what has been excluded; ends the run when it is too much."""
        count = len(self.train) + len(self.val)
        for one in sorted(found, key=lambda f: (f.image, f.position)):
            where = f" at position {one.position}" if split == "train" else ""
            log.warning(
                "warning: %s; the run continues without it in %s%s (%d excluded of at most %d)",
                one.error, split, where, count, self._most,
            )  # fmt: skip
        world.raise_together(too_many(count, self._most) if count > self._most else None)
