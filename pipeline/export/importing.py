"""Imports weights of other programs as a checkpoint, which `evaluate` and `predict` accept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.model.network import network_name
from pipeline.model.resnet import build_network
from pipeline.system.machine import versions
from pipeline.train.checkpoint import FORMAT
from pipeline.train.weights import Description, Weights, describe, load_into, read_weights


def checkpoint_of(path: Path, config: Config, class_list: Path | None) -> dict[str, Any]:
    """The content of a checkpoint with the weights in `path` and the settings of `config`.

    It says nothing about the unknown training: step and position are 0, the
    fingerprint names the file by its SHA-256 and no data, and there is no velocity. So no run
    resumes from it: `train --resume` refuses it.

    Class names come from `class_list`, or else from the file itself where this program wrote it, or
    else from the training data. Raises `ValueError` if they, the weights and the settings do not
    fit together.
    """
    weights = read_weights(path)
    classes = _class_names(config, class_list, weights.description)
    normalisation = _normalisation(path, config, weights)
    if weights.description is not None:
        _require_same(path, weights.description, config, classes)
    model = build_network(config.model, len(classes), "reference")
    load_into(model, weights.tensors, network_name(config.model), path)
    return {
        "format": FORMAT,
        "fingerprint": {"weights from": path.name, "sha256 of the weights": weights.sha256},
        "step": 0,
        "position": 0,
        "history": [],
        "excluded": {"train": [], "val": []},
        "model": model.state_dict(),
        "momentum": {},
        "world_size": 1,
        "classes": classes,
        "config": config.to_yaml(),
        "normalisation": normalisation.state(),
        "versions": versions(),
    }


def _class_names(
    config: Config, class_list: Path | None, described: Description | None
) -> list[str]:
    if class_list is not None:
        return read_class_list(class_list)
    if described is not None:
        return described.classes
    cache_dir = Path(config.data.cache_dir) if config.data.cache_dir else None
    try:
        return open_manifest(Path(config.data.root), "train", cache_dir).classes
    except ValueError as error:
        raise ValueError(
            f"the names of the classes are not known: {error}; or give --classes FILE, one name a "
            "line in the order of the network's outputs"
        ) from error


def read_class_list(path: Path) -> list[str]:
    """Reads names of classes, one a line. Raises `ValueError` for an empty line or a repeated name.

    In a file like ImageNet's synset_words.txt, whose every line begins with a synset's name, only
    that is read: the names of the data set's folders.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes {path} cannot be read as text: {error}") from error
    names = [line.strip() for line in lines]
    if all(re.match(r"n\d{8}( |$)", line) for line in names):
        names = [line.partition(" ")[0] for line in names]
    if "" in names:
        place = names.index("") + 1
        raise ValueError(f"--classes {path}: line {place} is empty; write one name a line")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"--classes {path} names {twice[0]} twice; write each class once")
    return names


def _normalisation(path: Path, config: Config, weights: Weights) -> Normalisation:
    if weights.description is not None:
        return weights.description.normalisation
    if config.data.mean != "imagenet":
        raise ValueError(
            f"data.mean={config.data.mean} stands for figures of a training set, which --weights "
            f"{path} does not hold; set data.mean=imagenet in --config"
        )
    return IMAGENET


def _require_same(path: Path, found: Description, config: Config, classes: list[str]) -> None:
    """Raises `ValueError` naming where the file and the settings differ."""
    wanted = describe(config, classes, found.normalisation)
    pairs = [(f"model.{name}", found.network.get(name), v) for name, v in wanted.network.items()]
    pairs += [
        (config.data.shown_view_size.partition("=")[0], found.image_size, wanted.image_size),
        ("data.val_resize", found.resize, wanted.resize),
        ("classes", len(found.classes), len(wanted.classes)),
    ]
    if (found.normalisation.digest == IMAGENET.digest) != (config.data.mean == "imagenet"):
        pairs.append(("data.mean", "other than this", config.data.mean))
    differences = [f"{name} is {a} there and {b} here" for name, a, b in pairs if a != b]
    if differences:
        raise ValueError(
            f"--weights {path}, {found.name}, do not fit the settings: {', '.join(differences)}; "
            "set them in --config as they are there"
        )
