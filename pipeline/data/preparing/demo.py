"""`prepare demo`: draws the demo data set."""

from __future__ import annotations

from pipeline.data.demo import draw_demo
from pipeline.data.preparing.options import DemoOptions


def run(options: DemoOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    drawn = draw_demo(options.out, options.seed, options.train, options.val)
    print(
        f"{options.train} train and {options.val} val images "
        f"{'drawn in' if drawn else 'are in'} {options.out}"
    )
