"""Numbers in sentences. Imports nothing."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s: "1 rank", "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
