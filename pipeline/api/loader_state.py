"""What a loader's `state_dict` holds, and whether one belongs to a loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.api.loader_settings import Asked
from pipeline.config import Config, later_defaults, names_of, plain, require
from pipeline.config.idle import idle_settings
from pipeline.data.images import ImageSet
from pipeline.data.index.labels import shown
from pipeline.data.normalisation import Normalisation
from pipeline.data.order import SCHEME_VERSION
from pipeline.system.console import counted

_KIND, _VERSION = "trainyard.Loader", 1
_NUMBERS = ("epoch", "batch", "accumulation", "world_size", "position")
_OF_PLACE = "batch_size"
"""The fact of a validation that says where its batches begin; no matter between two of them."""
# What of the data's settings has no effect on the images of train.
_NOT_IN_TRAIN = ("val_resize", "val_size", "held_out", "mixup", "cutmix")


def facts_of(
    asked: Asked, images: ImageSet, normalisation: Normalisation, drop_last: bool
) -> dict[str, Any]:
    """The facts that make two loaders' streams the same one, on any number of ranks. Settings
    without an effect are not among them."""
    data = asked.data
    facts: dict[str, Any] = {
        "split": images.split,
        "data hash": images.digest[:16],
        "means and deviations": normalisation.digest,
    }
    if images.split == "val":
        facts |= {_OF_PLACE: data.local_batch_size, "view_size": data.view_size}
        return facts | {"data.val_resize": data.val_resize}
    values = {**Config().values(), **{f"data.{n}": v for n, v in vars(data).items()}}
    idle = {*(f"data.{name}" for name in _NOT_IN_TRAIN), *idle_settings(values)}
    if data.image_sizes is not None:
        idle.add("data.image_size")
    names = [n for n in names_of("identity") if n.startswith("data.") and n not in idle]
    facts |= {name: plain(values[name]) for name in names}
    facts |= {"seed": asked.seed, "drop_last": drop_last, "random_scheme": SCHEME_VERSION}
    return facts


def state_of(
    facts: Mapping[str, Any], asked: Asked, epoch: int, batch: int, position: int,
    excluded: list[Any],
) -> dict[str, Any]:  # fmt: skip
    """A state of plain values: in `epoch`, after `batch` batches of it on this rank, when the next
    step begins at `position`."""
    return {
        "kind": _KIND,
        "version": _VERSION,
        "stream": dict(facts),
        "epoch": epoch,
        "batch": batch,
        "accumulation": asked.accumulation,
        "world_size": asked.world_size,
        "position": position,
        "excluded": excluded,
    }


def place_in(
    state: Any, facts: Mapping[str, Any], asked: Asked, images: int
) -> tuple[int, int, list[Any]]:
    """The epoch of a `state`, the batches of it on this rank that are done, and what is excluded.

    Raises `ValueError` for what no loader has made, for a state of another stream, naming both
    values of each fact, and for one taken where this rank has no border between batches.
    """
    _require_state(state)
    stored = {**later_defaults(), **state["stream"]}
    if state["batch"] == 0:
        facts = {name: value for name, value in facts.items() if name != _OF_PLACE}
    differences = [
        f"{name}: {_told(stored, name)} in the state, {_told(facts, name)} here"
        for name, value in facts.items()
        if stored.get(name) != value
    ]
    if stored.get("split") != facts["split"]:
        differences = differences[:1]  # nothing else can be compared
    if differences:
        raise ValueError(
            f"the state is of another loader ({'; '.join(differences)}); set these back, or begin "
            "anew without the state"
        )
    _require_excluded(state.get("excluded"), images, facts["split"])
    epoch, batch, accumulation = state["epoch"], state["batch"], state["accumulation"]
    if facts["split"] == "val":
        require(
            batch == 0 or state["world_size"] == asked.world_size,
            f"the state was taken within a validation by {state['world_size']} ranks, whose parts "
            f"of it are not those of {asked.world_size}; validate anew without the state, or take "
            "one between validations",
        )
        return epoch, batch, state["excluded"]
    steps, micro = divmod(batch, accumulation)
    ranks = counted(state["world_size"], "rank"), counted(asked.world_size, "rank")
    require(
        micro == 0 or (accumulation, state["world_size"]) == (asked.accumulation, asked.world_size),
        f"the state was taken after batch {micro} of the {accumulation} of a step on {ranks[0]}, "
        f"and this loader has {asked.accumulation} batches a step on {ranks[1]}; load it with as "
        "many of both, or take one between steps",
    )
    return epoch, steps * asked.accumulation + micro, state["excluded"]


def require_position(state: Mapping[str, Any], position: int) -> None:
    """Raises `ValueError` unless a `state` names the `position` that its batch has on this rank. In
    a validation each rank has its own, which between two of them does not matter."""
    if state["position"] == position:
        return
    if state["stream"]["split"] == "train":
        raise _damaged(f"its position is {state['position']} and that of its batch {position}")
    require(
        state["batch"] == 0,
        f"the state was taken within a validation at position {state['position']}, and batch "
        f"{state['batch']} of this rank is at {position}: it is another rank's; load this rank's "
        "own, or take one between validations",
    )


def _require_state(state: Any) -> None:
    """Raises `ValueError` unless `state` has the form of `state_of`."""
    if not isinstance(state, Mapping) or state.get("kind") != _KIND:
        found = shown(state)
        if isinstance(state, Mapping):
            found = f"a mapping with {', '.join(map(str, list(state)[:4])) or 'nothing in it'}"
        raise ValueError(
            f"the state is {found}, and of no pipeline.Loader; load what a loader's own state_dict "
            "has given"
        )
    if state.get("version") != _VERSION:
        raise ValueError(
            f"the state's version is {shown(state.get('version'))} and this program's {_VERSION}; "
            "load it with the program that made it, or begin anew without the state"
        )
    for name in _NUMBERS:
        value = state.get(name)
        least = 1 if name in ("accumulation", "world_size") else 0
        if type(value) is not int or not least <= value < 2**62:
            raise _damaged(f"its {name} is {shown(value)}")
    if not isinstance(state.get("stream"), Mapping):
        raise _damaged(f"its stream is {shown(state.get('stream'))}")


def _require_excluded(excluded: Any, images: int, split: str) -> None:
    """Raises `ValueError` unless `excluded` can be the excluded images of a `split` of so many."""
    rows = excluded if isinstance(excluded, list) else [excluded]
    for row in rows:
        if not _is_row(row if split == "train" else [row, 0], images):
            raise _damaged(f"its excluded images hold {shown(row)}")


def _is_row(row: Any, images: int) -> bool:
    """Whether `row` can be one of `Exclusions.rows`."""
    if not isinstance(row, list) or len(row) < 2:
        return False
    return all(type(one) is int and one >= 0 for one in row) and row[0] < images


def _damaged(flaw: str) -> ValueError:
    return ValueError(
        f"the state is damaged: {flaw}; load another one, or begin anew without a state"
    )


def _told(facts: Mapping[str, Any], name: str) -> str:
    return str(facts.get(name, "(not stored)"))
