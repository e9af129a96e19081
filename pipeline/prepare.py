"""Makes data sets ready: `python -m pipeline.prepare demo --out data/demo`."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from pipeline.config import ConfigError
from pipeline.failure import run_command
from pipeline.options import check_names


def parse(argv: list[str]) -> tuple[str, dict[str, object]]:
    """The subcommand and its options. Raises `ConfigError`; `--help` prints and exits."""
    demo = ArgumentParser(description="Draws the demo data set: ten classes of shapes on clutter.")
    demo.add_argument("--out", type=Path, default=Path("data/demo"), help="folder of the data set")
    demo.add_argument("--seed", type=int, default=0, help="seed of every image")
    demo.add_argument("--train", type=int, default=3000, help="training images")
    demo.add_argument("--val", type=int, default=1000, help="validation images")
    parser = ArgumentParser(
        prog="python -m pipeline.prepare", description=__doc__, exit_on_error=False
    )
    demo.exit_on_error = False
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("demo", demo, help="draw the demo data set")
    if argv[:1] == ["demo"]:
        check_names(demo, argv[1:])
    try:
        parsed = parser.parse_args(argv)
    except ArgumentError as error:
        raise ConfigError(f"{' '.join(str(error).split())}; see --help") from error
    return parsed.command, vars(parsed[parsed.command])


def main(argv: list[str]) -> None:
    """Runs one subcommand."""
    _, options = parse(argv)
    from pipeline.data.demo import draw_demo

    out, train, val = options["out"], options["train"], options["val"]
    assert isinstance(out, Path) and isinstance(train, int) and isinstance(val, int)
    seed = options["seed"]
    assert isinstance(seed, int)
    drawn = draw_demo(out, seed, train, val)
    print(f"{train} train and {val} val images {'drawn in' if drawn else 'are in'} {out}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
