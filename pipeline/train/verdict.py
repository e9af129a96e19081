"""The verdict on what limits a training, in one line, from measurements: pure functions, no torch.

The benchmark `all` knows the speeds of loader and model by themselves; a running training knows its
speed and what its step waits for. `Figures` holds either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.system.words import shell_word

Kind = Literal["input-bound", "communication-bound", "model-bound", "balanced", "unknown"]
Decoder = Literal["cpu", "gpu", "none"]

# A demo run waits for data 1% of its step with a loader twice as fast as it needs.
WAIT_LIMIT = 0.05
"""Share of a step waiting for images from which it is input-bound."""
EXPOSED_LIMIT = 0.10
"""Share of a step waiting for gradients from which it is communication-bound."""
HEADROOM_LIMIT = 1.10
"""Ratio of the loader's speed to what is used below which it is balanced with the model."""
WAIT_SEEN = 0.02
"""Share waiting for images from which a training, whose loader speed is unknown, is balanced."""
HELPS = 0.9
"""Share of fp32's time below which sending gradients as fp16 is advised."""

_LIMITS: dict[Kind, str] = {
    "input-bound": "the loader (input-bound)",
    "communication-bound": "gradients between ranks (communication-bound)",
    "balanced": "loader and model alike (balanced)",
    "model-bound": "the model (model-bound)",
}
"""Beginnings of the verdict on a training: the log says what it is "limited by"."""


@dataclass(frozen=True)
class Figures:
    """Measurements of one rank; None: unknown. Speeds in images per second."""

    loader: float | None = None
    """Speed of the loader when nothing else runs."""
    model: float | None = None
    """Speed of forward, backward and optimizer with images in memory."""
    reached: float | None = None
    """Speed of a whole training."""
    data_wait_share: float | None = None
    """Share of a training's step in which it waits for images."""
    exposed_communication_share: float | None = None
    """Share of the step, communication in it, in which it waits for gradients after backward."""
    decode_share: float | None = None
    """Share of the loader's time in which it decodes."""
    read_share: float | None = None
    """Share in which it reads files, plans crops and hands batches over."""
    decoder: Decoder | None = None
    threads: int | None = None
    """Threads of the loader, on CPUs."""
    cores: int | None = None
    """Cores of this rank."""
    model_threads: int = 0
    """Cores that the model computes on: 0 on a GPU."""
    gpu: bool = False
    """Whether there is a GPU that could decode."""
    compression: Literal["none", "fp16", "bf16"] = "none"
    """Format in which gradients are sent."""
    fp16_time: float | None = None
    """Time of sending the same gradients as fp16, over that in fp32."""
    ranks: int | None = None
    """Ranks at which the wait for gradients was measured; None: those of the training itself."""
    config: str | None = None
    """The YAML of a training, by which `benchmark all` measures its loader."""

    @property
    def consumed(self) -> float | None:
        """Speed of a rank that never waits for images, but does for gradients."""
        if self.model is not None:
            return self.model * (1 - (self.exposed_communication_share or 0.0))
        if self.reached is not None and self.data_wait_share is not None:
            return self.reached / (1 - self.data_wait_share) if self.data_wait_share < 1 else None
        return None

    @property
    def fed(self) -> float | None:
        """Speed of the loader; for a training that waits for it, the speed of the training."""
        if self.loader is None and (self.data_wait_share or 0.0) >= WAIT_LIMIT:
            return self.reached
        return self.loader

    @property
    def wait(self) -> float | None:
        """Share of the step that waits for images: as measured, else by the two speeds."""
        if self.data_wait_share is not None:
            return self.data_wait_share
        if self.fed is None or not self.consumed:
            return None
        return max(0.0, 1 - self.fed / self.consumed)

    @property
    def on_shared_cores(self) -> float | None:
        """Joint speed where loader and model run on the same cores, by their work per image in
        core-seconds; None where they have enough cores, or it is unknown."""
        if not (self.loader and self.model and self.threads and self.cores and self.model_threads):
            return None
        work_sec = self.threads / self.loader + self.model_threads / self.model
        left = self.cores / work_sec
        return left if left < (1 - WAIT_LIMIT) * min(self.loader, self.model) else None

    @property
    def headroom(self) -> float | None:
        """Ratio of what the loader could feed to what is used."""
        if self.loader is None or not self.consumed:
            return None
        return self.loader / self.consumed


def seen(
    line: Mapping[str, Any], ranks: int | None = None, known: Figures | None = None
) -> Figures:
    """What a line of training metrics says, or the medians of several, along with what is `known`.

    `ranks` is the number of ranks of the training; None: not known. Raises KeyError for a line
    without its shares.
    """
    return dataclasses.replace(
        known or Figures(),
        reached=line["images_per_sec"] / ranks if ranks else None,
        data_wait_share=line["data_wait_share"],
        exposed_communication_share=None if ranks == 1 else line["communication_share"],
    )


@dataclass(frozen=True)
class Verdict:
    """The limit, and the line that states it with its reasons and what would help."""

    kind: Kind
    text: str
    cures: tuple[str, ...] = ()
    """What would help; benchmark files keep it under this name."""

    def __str__(self) -> str:
        return self.text


def judge(figures: Figures) -> Verdict:
    """The verdict on `figures`; "unknown" names what is missing."""
    kind = kind_of(figures)
    if kind == "unknown":
        missing = "what the model takes" if figures.model is None else "what the loader gives"
        return Verdict(kind, f"no verdict, as {missing} is not known")
    reasons: list[str] = []
    fixes: list[str] = []
    if kind == "input-bound":
        reasons, fixes = _input(figures)
    elif kind == "communication-bound":
        reasons, fixes = _communication(figures)
    elif figures.headroom is not None:
        digits = 2 if kind == "balanced" else 1 if figures.headroom < 10 else 0
        reasons = [f"the loader could feed {figures.headroom:.{digits}f} times as much"]
    together = figures.on_shared_cores
    if together is not None and kind != "communication-bound":
        reasons.append(f"on the same {figures.cores} cores both reach about {_speed(together)}")
    said = [_LIMITS[kind], _waits(figures)] if _seen_waiting(figures) else [_speeds(figures, kind)]
    parts = [*said, *reasons]
    if fixes:
        parts.append(" or ".join(fixes) + " would lift it")
    return Verdict(kind, "; ".join(parts), tuple(fixes))


def kind_of(figures: Figures) -> Kind:
    """The limit. A loader slower than the rest hides what the rest waits for; of two waits measured
    in a training, the longer one counts."""
    wait, exposed = figures.wait, figures.exposed_communication_share or 0.0
    seen = figures.data_wait_share is not None
    longer = seen and exposed >= EXPOSED_LIMIT and exposed > (wait or 0.0)
    if wait is not None and wait >= WAIT_LIMIT and not longer:
        return "input-bound"
    if exposed >= EXPOSED_LIMIT:
        return "communication-bound"
    if wait is None:
        return "unknown"
    headroom = figures.headroom
    if headroom is not None:
        return "balanced" if headroom < HEADROOM_LIMIT else "model-bound"
    return "balanced" if wait >= WAIT_SEEN else "model-bound"


def _waits(figures: Figures) -> str:
    """The waits of a training's step, in words."""
    wait, exposed = figures.data_wait_share, figures.exposed_communication_share
    waits = [] if wait is None else [f"{wait:.0%} of the step waits for images"]
    if exposed is not None:
        waits.append(f"{exposed:.0%} {'' if waits else 'of the step waits '}for gradients")
    return ", ".join(waits)


def _speeds(figures: Figures, kind: Kind) -> str:
    """The speeds of a benchmark, compared, and the kind."""
    assert figures.model is not None and figures.consumed is not None, "else there is no verdict"
    at = "" if figures.ranks is None else f" at {figures.ranks} ranks"
    model, left = f"model {_speed(figures.model)}", f"with gradients{at} {_speed(figures.consumed)}"
    if kind == "communication-bound":
        return f"{left} < {model}: {kind}"
    assert figures.loader is not None, "nor without the loader"
    loader = f"loader {_speed(figures.loader)}"
    exposed = figures.exposed_communication_share or 0.0
    if kind == "balanced":
        compared = f"{loader}, {model}"
    elif kind == "model-bound":
        compared = f"{loader} > {model if figures.loader > figures.model else left}"
    else:
        compared = f"{loader} < {f'{left} < ' if exposed >= EXPOSED_LIMIT else ''}{model}"
    return f"{compared}: {kind}"


def _seen_waiting(figures: Figures) -> bool:
    """Whether the figures are a training's waits, not two speeds."""
    return figures.model is None or (figures.loader is None and figures.data_wait_share is not None)


def _speed(images_per_sec: float) -> str:
    digits = 0 if images_per_sec >= 100 else 1
    return f"{images_per_sec:,.{digits}f} img/s"


def _input(figures: Figures) -> tuple[list[str], list[str]]:
    """The slowest part of the loader, and what makes it faster."""
    fixes, decode, read = _more_hands(figures), figures.decode_share, figures.read_share
    if decode is None or read is None:
        if figures.loader is not None or fixes:
            return [], fixes
        given = f" --config {shell_word(figures.config)}" if figures.config else ""
        command = f"python -m pipeline.benchmark all{given}"
        return [f"{command} says which part of the loader it is"], []
    other = max(0.0, 1 - decode - read)
    if read >= max(decode, other):
        staged = "the data on a local disk (python -m pipeline.prepare stage)"
        return [f"reading takes {read:.0%} of the loader"], [staged]
    if figures.decoder == "none" or other > decode:
        reason = f"resizing and normalising take {other:.0%} of the loader"
        return [reason], [*fixes, "a smaller data.image_size"][:2]
    if figures.decoder == "gpu":
        fixes.append("a higher data.hw_decoder_load")
    reason = f"decoding takes {decode:.0%} of the loader"
    return [reason], [*fixes, "image files of fewer pixels"][:2]


def _more_hands(figures: Figures) -> list[str]:
    """Suggestions: as many more threads as are needed by the speed of one and as there are cores;
    the GPU."""
    fixes = []
    fed, wanted, threads = figures.fed, figures.consumed, figures.threads
    if figures.decoder != "gpu" and fed and wanted and threads and figures.cores:
        needed = math.ceil(wanted / (fed / threads)) - threads
        more = min(needed, figures.cores - figures.model_threads - threads)
        if more > 0:
            setting = f"data.threads={threads + more}"
            if more < needed:  # all cores are not enough
                share = fed * (threads + more) / threads / wanted
                setting += f": {share:.0%} of what is needed"
            fixes.append(f"{more} more thread{'s' if more > 1 else ''} ({setting})")
    if figures.decoder == "cpu" and figures.gpu:
        fixes.append("data.decode=gpu")
    return fixes


def _communication(figures: Figures) -> tuple[list[str], list[str]]:
    """Suggestions: the wait that remains if less is sent, or as much for twice the images."""
    share = figures.exposed_communication_share
    assert share is not None, "else it would not be communication-bound"
    reasons = [] if _seen_waiting(figures) else [f"{share:.0%} of the step waits for gradients"]
    fixes, factor = [], figures.fp16_time
    if figures.compression == "none" and factor is not None and factor < HELPS:
        left = share * factor / (1 - share + share * factor)
        fixes.append(f"optim.gradient_compression=fp16 (leaves about {left:.0%})")
    left = share / (2 - share)
    return reasons, [*fixes, f"twice the images per rank and step (leaves at most {left:.0%})"]
