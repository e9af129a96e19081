"""`--init`: which weights a new run begins with, and what it says and remembers of them."""

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from one_process import config_of, train_here
from run_files import newest_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from weight_files import CIFAR_8, CLASSES, RESNET_18, write_checkpoint

from pipeline.config import ConfigError, ModelConfig
from pipeline.config.reading import load_config
from pipeline.data.normalisation import IMAGENET
from pipeline.export import __main__ as export
from pipeline.model.network import resnet
from pipeline.model.resnet import build_network, make_model
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import read_verified
from pipeline.train.init import Head, fitted, network_in, warn_of_drawn_weights
from pipeline.train.weights import read_weights_or_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

OWN = ["arrow", "circle", "crescent", "cross", "heart", "hourglass", "ring", "square", "star",
       "triangle"]  # fmt: skip
THEIRS = ["star", "anchor", "circle"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of ours, of three classes, two of which the demo's data have; read only."""
    path = tmp_path_factory.mktemp("init") / "from.pt"
    return write_checkpoint(path, CIFAR_8, classes=THEIRS)


def drawn(model: ModelConfig, classes: int) -> dict[str, Tensor]:
    """A fresh network's weights."""
    torch.manual_seed(3)
    return build_network(model, classes).state_dict()


def saved(folder: Path, content: object, name: str = "weights.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def take(path: Path, model: ModelConfig = CIFAR_8, classes: list[str] = OWN):
    """What a run of `model` takes from a file: its weights and the head."""
    found = read_weights_or_checkpoint(path, "--init")
    return fitted(path, found, model, drawn(model, len(classes)), classes)


def require_rows(weights: dict[str, Tensor], source: dict[str, Tensor], rows: dict[int, int]):
    """Those rows of the head are the file's, all others a fresh network's."""
    for name in ("fc.weight", "fc.bias"):
        fresh = drawn(CIFAR_8, len(weights["fc.bias"]))[name]
        for label, row in enumerate(weights[name]):
            wanted = source[name][rows[label]] if label in rows else fresh[label]
            assert torch.equal(row, wanted), (name, label)


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors", "pth with json"])
def test_classes_of_the_same_name_keep_their_row(checkpoint, tmp_path, kind):
    path, source = checkpoint, read_verified(checkpoint)["model"]
    if kind == "safetensors":
        path = tmp_path / "a.safetensors"
        export.main([f"--checkpoint={checkpoint}", f"--out={path}"])
    if kind == "pth with json":
        description = read_weights_or_checkpoint(checkpoint, "--init").description
        path = saved(tmp_path, dict(source))
        path.with_suffix(".json").write_text(json.dumps(description.facts))
    weights, head = take(path)
    assert head.kept == {1: 2, 8: 0}
    require_rows(weights, source, {1: 2, 8: 0})
    body = {name for name in source if not name.startswith("fc.")}
    assert all(torch.equal(weights[name], source[name]) for name in body)
    assert head.told(OWN).startswith(
        "2 of 10 classes keep their row (circle, star), 8 are drawn anew (arrow, crescent, "
    )


def test_a_file_without_names_gives_its_head_to_as_many_classes(tmp_path):
    source = drawn(CIFAR_8, 10)
    weights, head = take(saved(tmp_path, source))
    require_rows(weights, source, {label: label for label in range(10)})
    assert "10 of 10 classes keep their row" in head.told(OWN)
    assert "the file has as many without names, taken to be in this order; python -m" in head.reason


def test_a_head_of_another_width_without_names_is_drawn_anew_and_says_how_to_name_it(tmp_path):
    source = drawn(CIFAR_8, 7)
    weights, head = take(saved(tmp_path, source))
    require_rows(weights, source, {})
    told = head.told(OWN)
    assert told.startswith("0 of 10 classes keep their row, 10 are drawn anew (arrow, ")
    assert "the file has 7 classes without names, here are 10; python -m pipeline.export" in told
    assert "--classes NAMES makes a checkpoint that names them" in told


def test_a_file_without_a_head_and_from_before_batches_were_counted_serves(tmp_path):
    state = {n: v for n, v in drawn(CIFAR_8, 7).items() if n[:3] != "fc." and "num_b" not in n}
    weights, head = take(saved(tmp_path, state))
    assert weights.keys() == state.keys()
    assert head == Head({}, "the file has no last layer")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_training_of_another_program_serves_without_its_wrappers(tmp_path, prefix):
    state = drawn(RESNET_18, 1000)
    wrapped = {prefix + name: value for name, value in state.items()}
    path = saved(tmp_path, {"epoch": 3, "arch": "resnet18", "state_dict": wrapped}, "a.pth.tar")
    weights, head = take(path, RESNET_18)
    assert torch.equal(weights["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert not head.kept


def test_safetensors_of_other_programs_serve(tmp_path):
    state = {name: value.contiguous() for name, value in drawn(RESNET_18, 1000).items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    weights, _ = take(tmp_path / "model.safetensors", RESNET_18)
    assert torch.equal(weights["conv1.weight"], state["conv1.weight"])


PLAIN_8 = ModelConfig("cifar", residual=False, depth=8, zero_init_last_norm=False)
RESNET_50 = ModelConfig(depth=50)


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (RESNET_18, RESNET_50, "a ResNet-18 B, and the network is a ResNet-50 v1.5; set "
         "model.depth=18, or give weights of a ResNet-50 v1.5"),
        (RESNET_18, CIFAR_8, "a ResNet-18 B, and the network is a CIFAR ResNet-8 A; set "
         "model.family=imagenet and model.depth=18, or"),
        (CIFAR_8, ModelConfig("cifar", depth=14), "a CIFAR ResNet-8 A, and the network is a CIFAR "
         "ResNet-14 A; set model.depth=8, or"),
        (ModelConfig(depth=18, shortcut="A"), RESNET_18, "does not hold the weights of a ResNet-18 "
         r"B: 15 tensors are missing, the first layer2.0.downsample.0.weight; set model as"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused_with_both_names(tmp_path, there, here, told):
    with pytest.raises(ValueError) as error:
        take(saved(tmp_path, drawn(there, 10)), here)
    assert told in str(error.value) and f"--init {tmp_path}/weights.pth" in str(error.value)


def test_no_depth_is_proposed_that_does_not_exist_here(tmp_path):
    of_50 = drawn(RESNET_50, 10).items()
    state = {n: value for n, value in of_50 if n[:5] != "layer" or n[7] in "01"}  # timm's resnet26
    with pytest.raises(ValueError) as error:
        take(saved(tmp_path, state), RESNET_50)
    assert str(error.value).endswith(
        "holds the weights of a ResNet-26 B, and the network is a ResNet-50 v1.5; give weights "
        "of a ResNet-50 v1.5"
    )


def test_a_checkpoint_says_itself_what_network_it_is_of(checkpoint):
    with pytest.raises(ValueError) as error:
        take(checkpoint, PLAIN_8)  # the same names and shapes
    assert (
        "holds the weights of a CIFAR ResNet-8 A, and the network is a CIFAR plain-8; set "
        "model.residual=true and model.shortcut=A, or give"
    ) in str(error.value)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_a_network_is_known_by_its_names_and_shapes(depth):
    with torch.device("meta"):
        state = build_network(ModelConfig(depth=depth), 10).state_dict()
    assert network_in(state) == resnet(depth, "B", "v1.5")
    assert network_in({"conv1.weight": torch.zeros(3)}) is None


def deep_stem(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As timm's resnet18d has it."""
    return {name.replace("conv1.weight", "conv1.0.weight", 1) if name == "conv1.weight" else name:
            value for name, value in state.items()}  # fmt: skip


def wrong_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"fc.weight": torch.zeros(10, 63)}


def infinite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["layer1.0.conv1.weight"][0] = float("inf")
    return state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (deep_stem, "1 tensors are missing, the first conv1.weight; 1 do not belong there, the "
         "first conv1.0.weight"),
        (wrong_head, r"a last layer of shape (10, 63), which must be (10, 64)"),
        (infinite, "its weights are not finite: layer1.0.conv1.weight; copy it again"),
        (lambda state: {"epoch": 3}, "cannot be used: it holds epoch, not tensors by name"),
        (lambda state: {"model": state, "model_ema": state}, "under model, model_ema; write one of "
         "them alone: torch.save(torch.load(FILE"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(tmp_path, change, told):
    with pytest.raises(ValueError) as error:
        take(saved(tmp_path, change(drawn(CIFAR_8, 10))))
    assert told in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_with_what_to_save_instead(tmp_path, zipped):
    path = tmp_path / "model.pth"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        take(path)
    for part in (
        f"--init {path} cannot be used: it holds pickled objects of torch.nn.modules.",
        "only running code could rebuild",
        "torch.save(model.state_dict(), 'weights.pth')",
    ):
        assert part in str(error.value)  # fmt: skip


@pytest.mark.parametrize("content", [b"data:\n  root: data/own\n", b"\x89PNG\r\n\x1a\n", b""])
def test_a_file_of_another_kind_is_refused_in_words_of_this_program(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        take(path)
    assert str(error.value) == (
        f"--init {path} cannot be used: it is neither a file of torch.save nor safetensors; give a "
        ".pth, a .safetensors or a checkpoint of this program"
    )


def test_a_damaged_checkpoint_is_refused(checkpoint, tmp_path):
    stored = bytearray(checkpoint.read_bytes())
    stored[len(stored) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(stored)
    with pytest.raises(ValueError, match=r"a\.pt is damaged: its SHA-256 is wrong"):
        take(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(stored[:5000])
    with pytest.raises(ValueError, match=r"--init .*b\.pt cannot be used: .*; copy it again"):
        take(tmp_path / "b.pt")


def test_init_and_a_checkpoint_to_resume_are_two_answers_to_one_question(small_data, tmp_path):
    with pytest.raises(
        ConfigError, match="--init a.pth and --resume b.pt both say what the weights"
    ) as error:
        config_of(small_data, tmp_path, "--init=a.pth", "--resume=b.pt")
    assert "leave one of them out (--init=null where the YAML has it)" in str(error.value)
    file = tmp_path / "run.yaml"
    file.write_text(config_of(small_data, tmp_path, "--init=a.pth").to_yaml())
    assert load_config([f"--config={file}", "--resume=b.pt", "--init=null"]).init is None


# Runs of 3 steps, that learn nothing: what they began with is what they end with.

STILL = ("--optim.base_lr=1e-30", "--model.freeze=[backbone]", "--schedule.epochs=0.4")


@pytest.fixture(scope="module")
def begun(checkpoint, small_data, tmp_path_factory) -> Path:
    """A finished run that began with the checkpoint; its copies are to be resumed."""
    runs = tmp_path_factory.mktemp("runs")
    return train_here(small_data, runs, f"--init={checkpoint}", *STILL)


@pytest.fixture
def run(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "runs" / "test"))


def test_a_run_begins_with_the_files_weights_and_a_head_of_its_own_seed(
    begun, checkpoint, small_data
):
    stored, source = newest_checkpoint(begun), read_verified(checkpoint)["model"]
    for name, value in source.items():
        if not name.startswith("fc."):
            assert torch.equal(stored["model"][name], value), name
    config = config_of(small_data, begun.parent)
    fresh = make_model(config, 10, torch.device("cpu")).state_dict()
    for label, name in enumerate(OWN):
        kept = name in THEIRS
        wanted = source["fc.weight"][THEIRS.index(name)] if kept else fresh["fc.weight"][label]
        assert torch.equal(stored["model"]["fc.weight"][label], wanted), name


def test_a_run_says_and_stores_what_it_began_with(begun, checkpoint):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    facts = newest_checkpoint(begun)["fingerprint"]
    assert facts["initial weights"] == "from.pt"
    assert facts["sha256 of the initial weights"] == digest
    log = (begun / "log.txt").read_text()
    assert f"weights: from {checkpoint} (sha256 {digest})\n" in log
    assert "head: 2 of 10 classes keep their row (circle, star), 8 are drawn anew (" in log
    assert f"began with the weights of from.pt (sha256 {digest})\n" in log
    assert "meant for weights" not in log
    start = json.loads((begun / "metrics.jsonl").read_text().splitlines()[0])
    assert (start["init"], start["init_sha256"]) == ("from.pt", digest)


def test_what_is_for_trained_weights_is_warned_of_in_a_run_without(begun, small_data, tmp_path):
    warning = "meant for weights that are trained already"
    assert warning not in (begun / "log.txt").read_text()
    log = train_here(small_data, tmp_path, *STILL, "--optim.head_lr=0.5") / "log.txt"
    told = f"warning: model.freeze=[backbone] and optim.head_lr=0.5: {warning}"
    assert told in log.read_text()


def test_what_is_for_no_others_weights_is_not_warned_of(small_data, tmp_path, caplog):
    warn_of_drawn_weights(config_of(small_data, tmp_path))
    assert caplog.text == ""


@pytest.mark.parametrize("given", [True, False])
def test_a_run_resumes_without_the_file(run, checkpoint, small_data, tmp_path, given):
    gone = [f"--init={tmp_path}/from.pt"] if given else []
    train_here(small_data, run.parent, *STILL, "--schedule.epochs=0.6", *gone)
    log = (run / "log.txt").read_text()
    assert "resuming from" in log and log.count("began with the weights of from.pt") == 2
    assert ("is not there, and a run that resumes does not need it" in log) == given
    assert newest_checkpoint(run)["fingerprint"]["initial weights"] == "from.pt"


def test_a_start_without_the_file_says_so_where_the_one_before_left_no_checkpoint(
    run, checkpoint, small_data
):
    shutil.rmtree(run / "checkpoints")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])  # its start
    train_here(small_data, run.parent, *STILL)
    told = "which left no checkpoint, began with the weights of from.pt, and this one begins"
    assert told in (run / "log.txt").read_text()


def test_another_run_that_resumes_from_its_checkpoint_began_with_the_same_file(
    begun, small_data, tmp_path
):
    source = max((begun / "checkpoints").glob("step-*.pt"))
    options = [*STILL, "--schedule.epochs=0.6"]
    run = train_here(small_data, tmp_path, *options, f"--resume={source}")
    first = newest_checkpoint(begun)["fingerprint"]
    assert newest_checkpoint(run)["fingerprint"] == first
    log = (run / "log.txt").read_text()
    assert "began with the weights of from.pt" in log and "meant for weights" not in log


def test_of_a_checkpoint_with_an_average_of_the_weights_that_is_taken_and_said(
    small_data, tmp_path
):
    path = write_checkpoint(tmp_path / "a.pt", CIFAR_8, classes=OWN, ema=True)
    run = train_here(small_data, tmp_path, *STILL, f"--init={path}", "--optim.ema_decay=0.9")
    stored, source = newest_checkpoint(run), read_verified(path)
    wanted = source["ema"]["model"]["fc.weight"]
    assert not torch.equal(wanted, source["model"]["fc.weight"])
    assert torch.equal(stored["model"]["fc.weight"], wanted)
    assert torch.equal(stored["ema"]["model"]["fc.weight"], wanted)
    assert f"weights: from {path} (EMA of the weights) (sha256 " in (run / "log.txt").read_text()


def test_a_run_resumes_with_the_same_file_under_another_name(run, checkpoint, small_data, tmp_path):
    copy = shutil.copy(checkpoint, tmp_path / "copy.pt")
    train_here(small_data, run.parent, *STILL, "--schedule.epochs=0.6", f"--init={copy}")
    assert newest_checkpoint(run)["fingerprint"]["initial weights"] == "from.pt"


def test_a_run_does_not_resume_with_another_file(run, checkpoint, small_data, tmp_path):
    other = write_checkpoint(tmp_path / "other.pt", CIFAR_8, classes=CLASSES)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (checkpoint, other)]
    with pytest.raises(Reported) as error:
        train_here(small_data, run.parent, *STILL, f"--init={other}")
    assert (
        f"began with from.pt of sha256 {digests[0]}, and --init {other} has {digests[1]}; leave it "
        "out, or choose another run.name"
    ) in error.value.message


def test_a_run_begins_with_the_best_of_another_and_goes_on_when_that_is_gone(
    begun, small_data, tmp_path
):
    folder = shutil.copytree(begun, tmp_path / "other")
    best = folder / "checkpoints" / "best.pt"
    told = (train_here(small_data, tmp_path, *STILL, f"--init={folder}") / "log.txt").read_text()
    assert f"weights: from {best} " in told or f"weights: from {best}," in told
    best.unlink()
    run = train_here(small_data, tmp_path, *STILL, f"--init={folder}")
    assert f"--init {folder} is not there, and a run that resumes" in (run / "log.txt").read_text()
    write_checkpoint(best, CIFAR_8, classes=THEIRS)
    with pytest.raises(Reported, match=f"and --init {best} has [0-9a-f]+; leave it out"):
        train_here(small_data, tmp_path, *STILL, f"--init={folder}")


def test_a_run_that_began_without_does_not_go_on_with_one(checkpoint, small_data, tmp_path):
    log = (train_here(small_data, tmp_path, *STILL) / "log.txt").read_text()
    assert (
        "warning: model.freeze=[backbone]: meant for weights that are trained already, and all of "
        "this run were drawn by run.seed; begin another run with --init FILE, or leave this out\n"
    ) in log
    with pytest.raises(Reported) as error:
        train_here(small_data, tmp_path, *STILL, f"--init={checkpoint}")
    assert "is of a run that began without --init, and --init" in error.value.message


@pytest.mark.parametrize(
    ("name", "told"),
    [("none.pth", "does not exist; give the path of a file of weights"),
     (".", "is not a file; give the path of a file of weights, such as resnet50.pth, or the folder "
           "of a run, for its best checkpoint"),
     ("runs/none", "runs/none is a run without checkpoints/best.pt, which a validation writes"),
     ("resnet.pth", "holds the weights of a ResNet-18 B, and the network is a CIFAR ResNet-8 A")],
)  # fmt: skip
def test_a_run_does_not_begin_with_a_file_that_is_wrong(small_data, tmp_path, name, told):
    saved(tmp_path, drawn(RESNET_18, 10), "resnet.pth")
    (tmp_path / "runs" / "none").mkdir(parents=True)
    (tmp_path / "runs" / "none" / "config.yaml").touch()
    with pytest.raises(Reported) as error:
        train_here(small_data, tmp_path, f"--init={tmp_path}/{name}")
    assert told in error.value.message
    assert not list((tmp_path / "test" / "checkpoints").glob("*"))


def test_pixels_of_other_means_are_warned_of(tmp_path, small_data, caplog):
    other = dataclasses.replace(IMAGENET, mean=IMAGENET.mean + 1)
    path = write_checkpoint(tmp_path / "a.pt", CIFAR_8, normalisation=other)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        run = train_here(small_data, tmp_path, *STILL, f"--init={path}")
    assert "were trained on pixels with other means and deviations" in (run / "log.txt").read_text()
