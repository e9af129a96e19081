"""Files of other programs given as checkpoints or weights: what is inside, and how to take it."""

import hashlib
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from one_process import evaluate_here, train_here
from safetensors.torch import save_file
from weight_files import CIFAR_8, SMALL, write_checkpoint

from pipeline import predict
from pipeline.config import Config
from pipeline.export import __main__ as export
from pipeline.export.importing import checkpoint_of
from pipeline.model.resnet import build_network
from pipeline.system import files
from pipeline.system.failure import Reported, TrainingError
from pipeline.system.regular import whole
from pipeline.train.checkpoint import DamagedCheckpoint, read_verified
from pipeline.train.foreign import NotWeights, state_dict_in
from pipeline.train.weights import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = {"conv1.weight": torch.arange(4.0), "fc.bias": torch.ones(3)}
HOW = (
    r"take its weights, .* by python -m pipeline.export --weights '/.*/a b.pt' --config FILE --out "
    r"FILE.pt, or begin a new run with them by --init"
)
TRUST = r"\(where you trust it, first write its tensors: torch.save\(model.state_dict\(\), "


def old_torch(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)


def numpys(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, weight=np.ones(3))


FOREIGN = {
    "a state_dict": (lambda path: torch.save(STATE, path),
                     "it holds 2 tensors by name, the first conv1.weight; take"),
    "a training's": (
        lambda path: torch.save({"epoch": 3, "state_dict": STATE, "optimizer": {}}, path),
        "it holds epoch, state_dict, optimizer: 2 tensors by name, the first conv1.weight under "
        "state_dict; take",
    ),
    "with an average": (
        lambda path: torch.save({"model": {f"module.{n}": v for n, v in STATE.items()},
                                 "ema": STATE}, path),
        "it holds model, ema: 2 tensors by name, the first module.conv1.weight under model and "
        "2 tensors by name, the first conv1.weight under ema; take",
    ),
    "a module": (lambda path: torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path),
                 "it holds pickled objects of torch.nn.modules.container.Sequential, "
                 f".*which only running code could rebuild {TRUST}"),
    "with options": (lambda path: torch.save({"state_dict": STATE, "args": Namespace(lr=1)}, path),
                     f"it holds pickled objects of argparse.Namespace, .* {TRUST}"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"args": Namespace(lr=1)})),
                 "it holds pickled objects of argparse.Namespace, "),
    "of old torch": (old_torch, "it is a plain pickle, as torch.save wrote before torch 1.6; take"),
    "TorchScript": (traced, "it is a TorchScript archive .where it can be run, first write"),
    "safetensors": (lambda path: save_file(STATE, path),
                    "it holds safetensors, 2 tensors by name, the first conv1.weight; take"),
    "numpy": (numpys, "it is a zip file that torch.save did not write, of weight.npy; take"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_file_of_another_program_holds_is_named(tmp_path, name):
    write, what = FOREIGN[name]
    path = tmp_path / "a b.pt"
    write(path)
    with pytest.raises(ValueError, match=f"a b.pt is of another program: {what}") as refused:
        read_verified(path)
    assert not isinstance(refused.value, DamagedCheckpoint)
    with pytest.raises(ValueError, match=HOW):
        read_verified(path)


def test_exported_weights_are_known_as_such(tmp_path):
    path = tmp_path / "a.safetensors"
    export.main([f"--checkpoint={write_checkpoint(tmp_path / 'a.pt')}", f"--out={path}"])
    with pytest.raises(ValueError, match="holds weights that pipeline.export wrote: it holds safe"):
        read_verified(path)


def test_every_command_that_takes_a_checkpoint_says_so(small_data, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save({"epoch": 3, "state_dict": STATE}, path)
    what = "theirs.pt is of another program: it holds epoch, state_dict: 2 tensors"
    image = next((small_data / "val").rglob("*.JPEG"))
    with pytest.raises(ValueError, match=what):
        predict.main([str(image), f"--checkpoint={path}"])
    with pytest.raises(ValueError, match=what):
        export.main([f"--checkpoint={path}", f"--out={tmp_path}/a.safetensors"])
    with pytest.raises(Reported, match=what):
        evaluate_here("--checkpoint", str(path))
    with pytest.raises(Reported, match=what):
        train_here(small_data, tmp_path, f"--resume={path}")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_network(CIFAR_8, 3, "reference").state_dict()


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar", ".ckpt", ".bin"])
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": wrapped(state, "module."), "best_acc1": 0.7},
        lambda state: {"model": wrapped(state, "_orig_mod."), "optimizer": {"state": {0: {}}}},
        lambda state: wrapped(state, "module._orig_mod."),
        lambda state: wrapped(state, "module.") | {"n_averaged": torch.tensor(9)},  # an EMA
    ],
)
def test_weights_are_taken_out_of_what_others_save(state, tmp_path, suffix, change):
    path, names = tmp_path / f"theirs{suffix}", tmp_path / "classes.txt"
    torch.save(change(state), path)
    names.write_text("a\nb\nc\n")
    found = checkpoint_of(path, Config(SMALL, CIFAR_8), names)["model"]
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": STATE, "ema": STATE},
            r"under model, ema; write one of them alone: torch.save\(torch.load\(FILE, "
            r"weights_only=True\)\['model'\], 'weights.pth'\)",
        ),
        ({"epoch": 3, "lr": 0.1}, "it holds epoch, lr, not tensors by name; write what model.sta"),
        ([1, 2], "it holds list, not tensors by name"),
        ({}, "it holds nothing, not tensors by name"),
    ],
)
def test_what_is_not_clear_is_told_with_what_to_write(content, message):
    with pytest.raises(NotWeights, match=message):
        state_dict_in(content)


def test_weights_that_only_code_could_rebuild_are_named_and_not_to_be_copied_again(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)
    wrong = r"--weights .*module.pth cannot be used: it holds pickled objects of torch.nn.modules"
    with pytest.raises(ValueError, match=wrong) as refused:
        read_weights(path)
    assert "copy it again" not in str(refused.value)


def test_a_checkpoint_of_this_program_is_no_file_of_weights(tmp_path):
    path = write_checkpoint(tmp_path / "ours.pth")
    with pytest.raises(ValueError, match="it is a checkpoint of this program; give it as --check"):
        read_weights(path)


def test_safetensors_under_another_name_is_known_by_its_content(tmp_path):
    save_file(STATE, tmp_path / "weights.bin", {"format": "pt"})
    found = read_weights(tmp_path / "weights.bin")
    assert found.tensors.keys() == STATE.keys() and found.description is None


def test_weights_are_read_once_so_that_their_digest_is_of_what_was_used(
    tmp_path, state, monkeypatch
):
    path, real, reads = tmp_path / "a.pth", whole, []
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")

    def read_bytes(of):
        stored = real(of)
        reads.append(of)
        path.write_bytes(b"another file meanwhile")
        return stored

    monkeypatch.setattr("pipeline.system.files.whole", read_bytes)
    content = checkpoint_of(path, Config(SMALL, CIFAR_8), tmp_path / "classes.txt")
    assert content["fingerprint"]["sha256 of the weights"] == digest
    assert reads == [path]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), PermissionError(13, "Denied")])
def test_weights_that_cannot_be_read_are_not_to_be_copied_again(tmp_path, monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    monkeypatch.setattr("pipeline.system.files.whole", refuse)
    with pytest.raises(TrainingError, match=f"a.pth cannot be read: {error.strerror}; start again"):
        read_weights(tmp_path / "a.pth")
