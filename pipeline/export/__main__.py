"""Exports and imports weights: `python -m pipeline.export --checkpoint
runs/demo/checkpoints/best.pt --out demo.onnx`, and back: `--weights resnet50.pth --config
configs/resnet50.yaml --out imported.pt`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, get_args

from pipeline.config import ConfigError, names_for, require
from pipeline.config.reading import (
    can_hold,
    command_parser,
    overrides,
    parse_overrides,
    read_yaml,
)
from pipeline.config.setting import PathText
from pipeline.config.training import Weights
from pipeline.system.console import say
from pipeline.system.failure import run_command
from pipeline.train.checkpoint_path import checkpoint_at

DESCRIPTION = (
    "Writes the network of a checkpoint for other programs, or weights of theirs as a checkpoint "
    "that pipeline.evaluate and pipeline.predict take. The suffix of --out says which: "
    ".safetensors; .pth, torchvision's state_dict with a .json next to it; .onnx, checked with "
    "onnxruntime; .pt, a checkpoint."
)
_KINDS = get_args(Weights)
_WRITTEN = (".safetensors", ".pth", ".onnx")
_READ = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
PACKAGES = {
    ".safetensors": ("safetensors",),
    ".onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""Packages that write or read files of these suffixes, as pip names them."""


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    parser = command_parser("pipeline.export", DESCRIPTION)
    parser.add_argument(
        "--checkpoint",
        type=PathText,
        help="file of a training run (.pt) to be written, or the run's folder, for its best",
    )
    parser.add_argument(
        "--weights", type=PathText, help="file to be read (.safetensors, or of torch.save: .pth, "
        ".pt, .tar, .ckpt, .bin); with --checkpoint, which of its weights to write: raw, as "
        "trained, or ema, their moving average (default: the average where it has one)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=PathText, help="with --weights: YAML file of their settings"
    )
    parser.add_argument(
        "--classes", type=PathText, help="with --weights: file of the class names, one a line; "
        "default: those in a .safetensors file of this program, or of the data in data.root",
    )  # fmt: skip
    parser.add_argument("--out", type=PathText, help="file to write")
    refusal = "--{} comes from the checkpoint, or with --weights from --config"
    options = parse_overrides(parser, argv, "export", refusal)
    kind: Weights | None = options.weights if options.weights in _KINDS else None
    require(
        kind is None or options.checkpoint is not None,
        f"--weights {kind} chooses among the weights of a checkpoint; give --checkpoint FILE too",
    )
    file = options.weights if kind is None else None
    require(
        (options.checkpoint is None) != (file is None),
        "give either --checkpoint, a .pt file of a run to be written for other programs, or "
        "--weights, a file of torch.save or safetensors to be made a checkpoint; with "
        "--checkpoint, --weights is raw or ema",
    )
    require(options.out is not None, "--out is missing; give the path of the file to write")
    can_hold("--out", options.out)
    if options.checkpoint is not None:
        checkpoint = _check_export(options)
        export(checkpoint, Path(options.out), kind)
    else:
        _check_import(options)
        import_weights(options)


def _check_export(options: Any) -> Path:
    given = [name for name in names_for("export") if name in options]
    for name in ("config", "classes", *names_for("export")):
        require(
            name not in given and options[name] is None,
            f"--{name} goes with --weights; with --checkpoint it comes from the checkpoint",
        )
    checkpoint = checkpoint_at("--checkpoint", options.checkpoint)
    _check_suffix("--out", options.out, _WRITTEN)
    require_packages(Path(options.out))
    return checkpoint


def _check_import(options: Any) -> None:
    weights = Path(options.weights)
    require(weights.is_file(), f"--weights {weights} does not exist; give the path of a file")
    _check_suffix("--weights", options.weights, _READ)
    _check_suffix("--out", options.out, (".pt",))
    require(
        options.config is not None,
        "--config is missing; give the YAML file of the settings that --weights were trained "
        "with, such as configs/resnet50.yaml",
    )
    require_packages(weights)


def _check_suffix(option: str, path: str, known: tuple[str, ...]) -> None:
    suffix, wanted = Path(path).suffix, " or ".join(known)
    require(
        suffix in known,
        f"{option} {path} has the suffix {suffix or '(none)'} and should have {wanted}",
    )


def export(path: Path, out: Path, kind: Weights | None = None) -> None:
    """Writes the network of checkpoint `path`, with its weights of a `kind`, in the format of
    `out`'s suffix; prints a summary. None: their average where there is one."""
    import torch

    from pipeline.export.formats import write_safetensors, write_torchvision
    from pipeline.export.onnx_file import write_onnx
    from pipeline.train import checkpoint
    from pipeline.train.weights import describe

    trained = checkpoint.read(path, kind)
    model = trained.build(torch.device("cpu"))
    description = describe(trained.config, trained.classes, trained.normalisation)
    notes = []
    if out.suffix == ".onnx":
        notes.append(str(write_onnx(out, model, description)))
    elif out.suffix == ".safetensors":
        write_safetensors(out, model, description)
    else:
        sidecar = write_torchvision(out, model, trained.config, description)
        notes.append(f"classes and preprocessing are in {sidecar}")
    count = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{out}: {description.name} of step {trained.step}{trained.said_kind}, "
        f"{len(trained.classes)} classes, {count:,} parameters, {out.stat().st_size / 1e6:.1f} MB"
    )
    say(*notes)


def import_weights(options: Any) -> None:
    """Writes the checkpoint that the parsed command line asks for; prints a summary."""
    from pipeline.export.importing import checkpoint_of
    from pipeline.model.network import network_name
    from pipeline.train.checkpoint import write_atomically

    config = overrides(options, names_for("export"), {"data": {}} | read_yaml(Path(options.config)))
    class_list = None if options.classes is None else Path(options.classes)
    content = checkpoint_of(Path(options.weights), config, class_list)
    write_atomically(Path(options.out), content)
    say(
        f"{options.out}: {network_name(config.model)}, {len(content['classes'])} classes; for "
        "pipeline.evaluate and pipeline.predict, not for resuming a training"
    )


def require_packages(path: Path) -> None:
    """Raises `ConfigError`, with the install command, if packages for `path` are missing."""
    names = PACKAGES.get(path.suffix, ())
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{path} needs {' and '.join(missing)}, which this Python does not have; "
            f"run pip install {' '.join(missing)}"
        )


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
