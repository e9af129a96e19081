"""Progress of a training for people: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.system.console import Bar, log

_TRAIN_LINE = (
    "epoch {epoch} step {step} loss {loss:.4f} top1 {top1:.2%} lr {lr:.5g} "
    "{images_per_sec:.0f} img/s data wait {data_wait_share:.1%}"
)


def train_line(metrics: Mapping[str, Any]) -> str:
    """Formats a line of training metrics for people. Raises `KeyError` for any other line."""
    return _TRAIN_LINE.format(**counted_from_one(metrics))


def val_line(metrics: Mapping[str, Any]) -> str:
    """Formats a line of a validation for people, with what it has. Raises `KeyError` for any other
    line."""
    shown = counted_from_one(metrics)
    raw = _scores(shown, top1="top1", top5="top5", balanced="balanced_top1")
    ema = _scores(shown, top1="ema_top1", top5="ema_top5")
    line = f"epoch {shown['epoch']} validation: {raw} loss {shown['loss']:.4f}"
    line += f", EMA {ema} loss {shown['ema_loss']:.4f}" if ema else ""
    return f"{line} ({shown['images']} images)"


def _scores(metrics: Mapping[str, Any], **names: str) -> str:
    """Those of the named accuracies that there are, by their words."""
    found = {word: metrics.get(name) for word, name in names.items()}
    return " ".join(f"{word} {share:.2%}" for word, share in found.items() if share is not None)


def counted_from_one(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics with its epoch counted from 1, so that the last of 4 is epoch 4."""
    return {**metrics, "epoch": metrics["epoch"] + 1}


class Progress(Bar):
    """Shows a run of `total_images` that is at `position`.

    Speed and time left are those of the metrics, whose clock does not jump, not the bar's own.
    Lines that a bar replaces on the console come back once its terminal is gone.
    """

    def __init__(self, total_images: int, position: int) -> None:
        super().__init__(total_images, position=position)
        self._total_images = total_images

    def train(self, metrics: Mapping[str, Any], verdict: str) -> None:
        """Shows a line of training metrics and what limits the training."""
        is_shown = self.shown
        log.info("%s", train_line(metrics), extra={"on_bar": is_shown})
        if not is_shown:
            return
        shown = counted_from_one(metrics)
        left = time_left((self._total_images - metrics["position"]) / metrics["images_per_sec"])
        words = (
            (2, "loss {loss:.3f}".format(**shown)),
            (4, "top1 {top1:.2%}".format(**shown)),
            (3, "{images_per_sec:.0f} img/s".format(**shown)),
            (0, f"{left} left"),
            (1, verdict),
        )
        self.redraw("epoch {epoch} ".format(**shown), [ranked for ranked in words if ranked[1]])


def time_left(seconds: float) -> str:
    """A duration for people: "3:07" minutes, "1:02:03" hours, "2 d 4 h"."""
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02d}:{sec:02d}" if hours else f"{minutes}:{sec:02d}"
