"""Results on whole data: those that `python -m pipeline.evaluate` left beside a run, and the
validations in training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import settings as said_of_settings
from pipeline.report.references import Protocol


@dataclass(frozen=True)
class Evaluation:
    """One result.

    `top1` and `top5` are errors in %; `dataset` as the setting of that name; `crop` is the side of
    the crop and the shorter side it is cut from, in pixels; `time` is in seconds since 1970, None
    where unknown; `scales` are the shorter sides in pixels of multi-scale, `mirror` whether each
    was counted mirrored too; `bn_images` how many training images BN's statistics were averaged
    over ("all", or empty for the moving averages); `ensemble` the number of networks; `changed`
    holds what else was not as in the training, such as "optim.amp=off"; `other_root` is where the
    images lie if they are not those that the training validated on, nor the test images beside
    them.
    """

    protocol: Protocol
    step: int
    images: int
    top1: float
    top5: float
    dataset: str | None
    crop: tuple[int, int]
    time: float | None
    in_training: bool = False
    mirror: bool = False
    scales: tuple[int, ...] = ()
    bn_images: str = ""
    ensemble: int = 1
    changed: tuple[str, ...] = ()
    other_root: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is what a validation in training does: one view, one network as it is."""
        special = self.bn_images or self.ensemble > 1 or self.changed or self.other_root
        return self.protocol == "1-crop" and not special


def read_evaluation(path: Path) -> Evaluation:
    """The result in a file of `pipeline.evaluate`. Raises ValueError, naming the file, if it is
    none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        data, is_other = content["config"]["data"], content["other_data"]
        of_crop = {name for name, one in said_of_settings().items() if one.of_view}
        changed = {
            name: value
            for name, value in content["changed"].items()
            if content["scales"] or name not in of_crop
        }
        return Evaluation(
            content["protocol"],
            int(content["step"]),
            int(content["images"]),
            100 * (1 - content["top1"]),
            100 * (1 - content["top5"]),
            None if is_other else data["dataset"],
            (data["image_size"], data["val_resize"]),
            datetime.fromisoformat(content["date"]).timestamp(),
            mirror=content["mirror"],
            scales=tuple(content["scales"]),
            bn_images=str(content["bn_images"] or ""),
            ensemble=len(content["ensemble"]),
            changed=tuple(f"{name}={value}" for name, value in changed.items()),
            other_root=data["root"] if is_other else "",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no result of python -m pipeline.evaluate ({what}); evaluate again or "
            "remove the file"
        ) from error


def validation_in_training(line: dict[str, Any], settings: dict[str, Any]) -> Evaluation:
    """The result that a `val` event of a run's metrics holds."""
    return Evaluation(
        "1-crop",
        int(line["step"]),
        int(line["images"]),
        100 * (1 - line["top1"]),
        100 * (1 - line["top5"]),
        settings["data.dataset"],
        (settings["data.image_size"], settings["data.val_resize"]),
        line.get("time"),
        in_training=True,
    )
