"""Measures this machine: `python -m pipeline.benchmark NAME [--json FILE] [options]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmark.options import (
    CONFIGURED,
    LINK_RANKS,
    LoaderOptions,
    ManifestOptions,
    NormOptions,
    StepOptions,
    TrainOptions,
)
from pipeline.benchmark.rank_options import (
    AllreduceOptions,
    DemoOptions,
    FinetuneOptions,
    PredictOptions,
    ScaleOptions,
)
from pipeline.config import Config, ConfigError, names_for
from pipeline.config.reading import (
    add_options,
    add_overrides,
    can_hold,
    command_parser,
    overrides,
    read_options,
    read_yaml,
    take_name,
)
from pipeline.config.reading import parse as parse_settings
from pipeline.config.setting import PathText
from pipeline.config.yaml_file import CONFIGS
from pipeline.system.console import say
from pipeline.system.failure import run_command
from pipeline.system.launched import launched_size

if TYPE_CHECKING:
    from pipeline.train.folder import RunFolder

OPTIONS: dict[str, type] = {
    "loader": LoaderOptions,
    "train": TrainOptions,
    "norm": NormOptions,
    "step": StepOptions,
    "scale": ScaleOptions,
    "demo": DemoOptions,
    "finetune": FinetuneOptions,
    "manifest": ManifestOptions,
    "allreduce": AllreduceOptions,
    "predict": PredictOptions,
    **CONFIGURED,
}

_FROM_SETTINGS = {"config", "made", "ranks"}
"""Fields of `CONFIGURED` that come from --config and a training's settings."""


def parse(argv: list[str]) -> tuple[str, Any, Path | None]:
    """The benchmark's name, its options (of its class in `OPTIONS`) and the path for its JSON.

    Raises `ConfigError` for an unknown name or option, with the nearest right one; `--help` prints
    and exits.
    """
    about = f"NAME [--json FILE] [options]\n\n{__doc__}"
    name = take_name(argv, OPTIONS, "benchmark", "pipeline.benchmark", about)
    kind, configured = OPTIONS[name], name in CONFIGURED
    parser = command_parser(f"pipeline.benchmark {name}", kind.__doc__ or "")
    add_options(parser, kind, "_", skip=_FROM_SETTINGS if configured else ())
    if configured:
        demo = str(CONFIGS / "demo.yaml")
        parser.add_argument(
            "--config", type=PathText, metavar="FILE", default=demo, help="YAML of a training"
        )
        add_overrides(parser, _settings(name))
    parser.add_argument(
        "--json", type=PathText, metavar="FILE", help="also write the whole result here"
    )
    parsed = parse_settings(parser, argv[1:])
    found = _read_settings(parsed, name) if configured else {}
    options: Any = read_options(parsed, parser, kind, "_", **found)
    return name, options, None if parsed.json is None else Path(parsed.json)


def _settings(name: str) -> list[str]:
    """The settings of a training that a benchmark depends on."""
    return names_for("benchmark") + (names_for("benchmark all") if name == "all" else [])


def _read_settings(parsed: Any, name: str) -> dict[str, Any]:
    """The fields `_FROM_SETTINGS`, read as pipeline.train reads them. Raises `ConfigError`."""
    base: dict[str, Any] = {"data": {}, "model": {}, "optim": {}, "run": {}}
    base |= read_yaml(Path(parsed.config))
    sizes = base["data"].get("image_sizes")  # of which the largest is measured
    size = parsed["data.image_size"] or (max(sizes.values()) if sizes else None)
    base["data"] = base["data"] | {"image_sizes": None, "val_size": None}
    if size is not None:  # nothing is validated here, but the two settings must fit
        base["data"] = base["data"] | {"image_size": size, "val_resize": size}
    config = overrides(parsed, _settings(name), base)
    if name != "all":
        return {"config": config}
    stored = _stored_run(Path(parsed.config))
    of_run = stored is not None and Path(config.data.root).is_dir()
    made = parsed["data.root"] is None and not of_run
    return {"config": config, "made": made, "ranks": _ranks(config, stored)}


def _stored_run(path: Path) -> RunFolder | None:
    """The run whose resolved settings are in `path`, or None."""
    from pipeline.train.folder import run_of

    run = run_of(path)
    return run if run is not None and run.config == path.absolute() and run.has_trained else None


def _ranks(config: Config, stored: RunFolder | None) -> int:
    found: int | None = None if stored is None else stored.last("start").get("ranks")
    if found is not None:
        return found
    return 1 if config.data.global_batch_size <= config.data.local_batch_size else LINK_RANKS


def main(argv: list[str]) -> None:
    """Runs one benchmark, prints its table and ratios, writes its JSON."""
    name, options, path = parse(argv)
    if launched_size() > 1:
        raise ConfigError(
            "benchmarks start what they need themselves: start them once, not under horovodrun"
        )
    if path is not None:
        can_hold("--json", str(path))
    benchmark = importlib.import_module(f"pipeline.benchmark.{name}")  # torch and DALI: only now
    from pipeline.benchmark.result import of_this_machine, write_json

    result = benchmark.run(options)
    try:
        if path is not None:
            write_json(path, of_this_machine(result.to_json()))
    finally:  # it has taken minutes, and is worth showing where it could not be kept
        say(*result.text().split("\n"))
    if path is not None:
        say(f"written to {path}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
