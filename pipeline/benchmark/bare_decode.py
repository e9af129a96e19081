"""Bare full decoding with simplejpeg, which binds libjpeg-turbo: the other end of the scale."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.data.index.manifest import Manifest

MISSING = "simplejpeg is not installed; pip install simplejpeg"


def can_run() -> bool:
    """Whether simplejpeg is installed. Nothing else is measured in its place."""
    return importlib.util.find_spec("simplejpeg") is not None


class BareDecode:
    """Decodes whole images from memory to RGB, one after the other on each of some threads.

    What simplejpeg refuses, such as ImageNet's few CMYK files and its PNG, is left out.
    """

    def __init__(self, manifest: Manifest, threads: int, images: int) -> None:
        """Reads all images of `manifest`. Raises `ValueError` if it can decode none of them."""
        # By name: mypy must pass with and without the package.
        self._decode: Any = importlib.import_module("simplejpeg").decode_jpeg
        contents = (manifest.read(image).tobytes() for image in range(len(manifest)))
        self._contents = [content for content in contents if self._decodes(content)]
        if not self._contents:
            raise ValueError(f"simplejpeg decodes none of the images of {manifest.directory}")
        self._threads = threads
        self._each = -(-images // threads)

    def measure(self) -> float:
        """Images per second of all threads together; decoding is done without the GIL."""
        begins = range(0, self._threads * self._each, self._each)
        with ThreadPoolExecutor(self._threads) as pool:
            started = time.perf_counter()
            list(pool.map(self._decode_from, begins))
            seconds = time.perf_counter() - started
        return self._threads * self._each / seconds

    def _decode_from(self, begin: int) -> None:
        contents: Sequence[bytes] = self._contents
        for number in range(begin, begin + self._each):
            self._decode(contents[number % len(contents)], colorspace="RGB")

    def _decodes(self, content: bytes) -> bool:
        try:
            self._decode(content, colorspace="RGB")
        except ValueError:
            return False
        return True
