"""What a file of weights says beside the weights: the network, the classes, the preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.data.normalisation import Normalisation
from pipeline.model.network import network_facts, network_name

_FORMAT = "1"
_VIEW = "shorter side to `resize` pixels, bilinear with antialiasing; centre square of `image_size`"


@dataclass(frozen=True)
class Description:
    """What must be known to use a network's weights.

    `network` is how its layers are built, `resize` and `image_size` are pixels, `classes` the names
    of its outputs in order.
    """

    network: Mapping[str, Any]
    name: str
    classes: list[str]
    image_size: int
    resize: int
    normalisation: Normalisation

    def text(self) -> dict[str, str]:
        """As the metadata of a file: JSON by name. A mean image is not in it."""
        normal = self.normalisation
        preprocessing = {
            "view": _VIEW,
            "image_size": self.image_size,
            "resize": self.resize,
            "pixels": "RGB, 0..255, (pixel - mean) / std, N x 3 x H x W",
            "mean": [float(value) for value in normal.mean],
            "std": [float(value) for value in normal.std],
            "color_axes": normal.color_axes.tolist(),
        }
        return {
            "trainyard": _FORMAT,
            "name": self.name,
            "network": json.dumps(dict(self.network)),
            "preprocessing": json.dumps(preprocessing),
            "classes": json.dumps(self.classes),
        }


def describe(config: Config, classes: list[str], normalisation: Normalisation) -> Description:
    """The description of the network that these settings give."""
    model, data = config.model, config.data
    resize = data.image_size if data.dataset == "cifar-10" else data.val_resize
    return Description(
        network_facts(model), network_name(model), classes, data.image_size, resize, normalisation
    )


def from_text(text: Mapping[str, str], image: Any | None) -> Description | None:
    """The inverse of `text`, with the mean `image` (H, W, 3) float32 if there was one.

    None where another program wrote the file. Raises `ValueError` for metadata of ours that does
    not hold what it should.
    """
    if text.get("trainyard") != _FORMAT:
        return None
    try:
        preprocessing = json.loads(text["preprocessing"])
        return Description(
            json.loads(text["network"]),
            text["name"],
            json.loads(text["classes"]),
            preprocessing["image_size"],
            preprocessing["resize"],
            Normalisation(
                mean=np.array(preprocessing["mean"], dtype=np.float32),
                std=np.array(preprocessing["std"], dtype=np.float32),
                image=image,
                color_axes=np.array(preprocessing["color_axes"], dtype=np.float64),
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its metadata is damaged ({type(error).__name__}: {error})") from error
