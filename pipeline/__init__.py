"""ResNet training on ImageNet: the commands, and the same from Python.

`pipeline.train(config)`, `pipeline.evaluate(checkpoint)`, `pipeline.load(checkpoint)`,
`pipeline.images(root, split)` and `pipeline.Loader` are those of `pipeline.api`. Nothing is
imported for them before the first is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import Loader as Loader
    from pipeline.api import evaluate as evaluate
    from pipeline.api import images as images
    from pipeline.api import load as load
    from pipeline.api import train as train

    __version__: str

__all__ = ["Loader", "evaluate", "images", "load", "train"]

_COMMANDS = ("evaluate", "train")
"""Functions whose names are also packages: `python -m pipeline.train`."""


def _function(name: str) -> Any:
    return getattr(importlib.import_module("pipeline.api"), name)


class _Command(ModuleType):
    """A package that is called as the function of its name in `pipeline.api`."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Does what the function of this name in `pipeline.api` does."""
        return _function(self.__name__.rpartition(".")[2])(*args, **given)

    def __reduce__(self) -> Any:
        """By its name, as a function is sent to another process."""
        return importlib.import_module, (self.__name__,)

    @property
    def __signature__(self) -> Any:
        """The function's, for `inspect.signature` and a notebook's help."""
        import inspect

        return inspect.signature(_function(self.__name__.rpartition(".")[2]))


class _Pipeline(ModuleType):
    """This package, which makes its commands callable as Python imports them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _COMMANDS and type(value) is ModuleType:
            value.__class__ = _Command
        super().__setattr__(name, value)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _COMMANDS:
            return importlib.import_module(f"pipeline.{name}")
        if name in __all__:
            return _function(name)
        if name == "__version__":
            from pipeline.system.version import VERSION

            return VERSION
        names = ", ".join(__all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are: {names}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})


sys.modules[__name__].__class__ = _Pipeline
