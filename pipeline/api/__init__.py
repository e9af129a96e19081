"""Training, testing and looking at images from Python: docs/api.md.

Every name is loaded when it is first used, so that importing this takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api.dataset import Images as Images
    from pipeline.api.dataset import images as images
    from pipeline.api.evaluating import EvaluateResult as EvaluateResult
    from pipeline.api.evaluating import evaluate as evaluate
    from pipeline.api.loader import Loader as Loader
    from pipeline.api.loading import Loaded as Loaded
    from pipeline.api.loading import Transform as Transform
    from pipeline.api.loading import load as load
    from pipeline.api.training import TrainResult as TrainResult
    from pipeline.api.training import train as train
    from pipeline.config import Config as Config
    from pipeline.config import ConfigError as ConfigError
    from pipeline.data.images import BadImage as BadImage
    from pipeline.system.failure import PeerLost as PeerLost
    from pipeline.system.failure import TrainingError as TrainingError
    from pipeline.train.checkpoint import DamagedCheckpoint as DamagedCheckpoint
    from pipeline.train.checkpoint import UnreadableCheckpoint as UnreadableCheckpoint
    from pipeline.train.metrics import Validation as Validation
    from pipeline.train.monitor.observer import Observer as Observer
    from pipeline.train.precision import TrainingDiverged as TrainingDiverged
    from pipeline.train.saving import SaveError as SaveError

_FROM = {
    "BadImage": "pipeline.data.images",
    "Config": "pipeline.config",
    "ConfigError": "pipeline.config",
    "DamagedCheckpoint": "pipeline.train.checkpoint",
    "EvaluateResult": "pipeline.api.evaluating",
    "Images": "pipeline.api.dataset",
    "Loaded": "pipeline.api.loading",
    "Loader": "pipeline.api.loader",
    "Observer": "pipeline.train.monitor.observer",
    "PeerLost": "pipeline.system.failure",
    "SaveError": "pipeline.train.saving",
    "TrainResult": "pipeline.api.training",
    "TrainingDiverged": "pipeline.train.precision",
    "TrainingError": "pipeline.system.failure",
    "Transform": "pipeline.api.loading",
    "UnreadableCheckpoint": "pipeline.train.checkpoint",
    "Validation": "pipeline.train.metrics",
    "evaluate": "pipeline.api.evaluating",
    "images": "pipeline.api.dataset",
    "load": "pipeline.api.loading",
    "train": "pipeline.api.training",
}
"""The module of each public name."""

__all__ = list(_FROM)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _FROM:
            names = ", ".join(_FROM)
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}; there are: {names}"
            )
        try:
            return getattr(importlib.import_module(_FROM[name]), name)
        except ModuleNotFoundError as error:
            from pipeline.system.failure import raise_with_cure

            raise_with_cure(error)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_FROM})
