"""`prepare mini`: draws the data of configs/mini/."""

from __future__ import annotations

from pipeline.data.mini import draw_mini
from pipeline.data.preparing.options import MiniOptions


def run(options: MiniOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    drawn = draw_mini(options.out, options.seed, options.train, options.test)
    print(
        f"{options.train} train and {options.test} test images "
        f"{'drawn in' if drawn else 'are in'} {options.out}"
    )
