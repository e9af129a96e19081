"""`prepare pairs`: draws the data of configs/mini/."""

from __future__ import annotations

from pipeline.data.pairs import draw_pairs
from pipeline.data.preparing.options import PairsOptions


def run(options: PairsOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    drawn = draw_pairs(options.out, options.seed, options.train, options.test)
    print(
        f"{options.train} train and {options.test} test images "
        f"{'drawn in' if drawn else 'are in'} {options.out}"
    )
