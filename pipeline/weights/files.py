"""Writing a file whole or not at all, and which packages that takes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import ConfigError

PACKAGES = {
    ".safetensors": ("safetensors",),
    ".onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""What writes or reads files of these suffixes, as pip calls it."""


def require_packages(path: Path) -> None:
    """Raises `ConfigError`, with the line that installs them, if packages for `path` lack."""
    names = PACKAGES.get(path.suffix, ())
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{path} needs {' and '.join(missing)}, which this Python does not have; "
            f"run pip install {' '.join(missing)}"
        )


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write; it takes the place of `path` if the body ends well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
