"""Weights in: a checkpoint that is tested and used, and that no training resumes from."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from one_process import evaluate_here, train_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weight_files import CIFAR_8, CLASSES, RESNET_18, SMALL, with_image, write_checkpoint

from pipeline import predict
from pipeline.config import Config, ConfigError, DataConfig, ModelConfig
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.export import __main__ as export
from pipeline.export.importing import checkpoint_of, read_class_list
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import read_verified
from pipeline.train.weights import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def exported(folder: Path, suffix: str, model: ModelConfig, **more: object) -> Path:
    checkpoint = write_checkpoint(folder / "from.pt", model, **more)
    out = folder / f"weights{suffix}"
    export.main([f"--checkpoint={checkpoint}", f"--out={out}"])
    return out


def class_file(folder: Path, *names: str) -> Path:
    path = folder / "classes.txt"
    path.write_text("".join(f"{name}\n" for name in names or CLASSES))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Weights of a ResNet-18 as torchvision's; read only."""
    return exported(tmp_path_factory.mktemp("source"), ".pth", RESNET_18)


@pytest.fixture
def weights(source, tmp_path) -> Path:
    """A copy of them, without the JSON that says what they are."""
    return Path(shutil.copy(source, tmp_path))


def same_weights(folder: Path, content: dict[str, object]) -> bool:
    wanted = read_verified(folder / "from.pt")["model"]
    found = content["model"]
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("image", [True, False])
def test_safetensors_come_back_as_they_went(tmp_path, image):
    normalisation = IMAGENET
    if image:
        axes = np.arange(9.0).reshape(3, 3) / 7  # of its training set, as `prepare mean` has them
        normalisation = dataclasses.replace(with_image(32), color_axes=axes)
    weights = exported(tmp_path, ".safetensors", CIFAR_8, normalisation=normalisation)
    data = DataConfig(image_size=32, val_resize=36, mean="pixel" if image else "imagenet")
    content = checkpoint_of(weights, Config(data, CIFAR_8), None)
    assert same_weights(tmp_path, content)
    assert content["classes"] == CLASSES
    found = Normalisation.from_state(content["normalisation"])
    assert found.digest == normalisation.digest


def test_torchvisions_file_becomes_a_checkpoint_that_says_where_it_comes_from(
    source, weights, tmp_path
):
    content = checkpoint_of(weights, Config(SMALL, RESNET_18), class_file(tmp_path))
    assert same_weights(source.parent, content)
    assert content["fingerprint"].keys() == {"weights from", "sha256 of the weights"}
    assert content["step"] == 0 and not content["momentum"]


def test_the_json_next_to_our_pth_is_read_and_compared(tmp_path):
    weights = exported(tmp_path, ".pth", RESNET_18)
    assert checkpoint_of(weights, Config(SMALL, RESNET_18), None)["classes"] == CLASSES
    other = dataclasses.replace(SMALL, image_size=48, val_resize=54)
    with pytest.raises(ValueError, match="48"):
        checkpoint_of(weights, Config(other, RESNET_18), None)
    weights.with_suffix(".json").write_text("not JSON")
    with pytest.raises(ValueError, match="names of the classes are not known"):
        checkpoint_of(weights, Config(dataclasses.replace(SMALL, root="none"), RESNET_18), None)


def test_a_file_from_before_batches_were_counted_is_read(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    torch.save({n: v for n, v in state.items() if "num_batches" not in n}, weights)
    content = checkpoint_of(weights, Config(SMALL, RESNET_18), class_file(tmp_path))
    assert torch.equal(content["model"]["fc.weight"], state["fc.weight"])
    assert content["model"]["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("model", "data", "classes", "message"),
    [
        (ModelConfig(depth=34), SMALL, CLASSES, r"ResNet-34 B with 7 classes: \d+ tensors are m"),
        (ModelConfig(depth=18, shortcut="A"), SMALL, CLASSES, "18 do not .* layer2.0.downsample.0"),
        (RESNET_18, SMALL, CLASSES[:6], r"6 classes: fc.weight is \(7, 512\) .* be \(6, 512\)"),
        (
            RESNET_18, DataConfig(mean="channel"), CLASSES,
            "data.mean=channel stands for figures of a training set, .*; set data.mean=imagenet",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, model, data, classes, message):
    with pytest.raises(ValueError, match=message):
        checkpoint_of(weights, Config(data, model), class_file(tmp_path, *classes))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (ModelConfig("cifar", depth=14), SMALL, "ResNet-8 A, do not .*depth is 8 there and 14"),
        (ModelConfig("cifar", depth=8, residual=False, zero_init_last_norm=False), SMALL,
         "model.residual is True there and False here, model.shortcut is A there and None here"),
        (CIFAR_8, DataConfig(image_size=32), "data.val_resize is 36 there and 256 here; set"),
        (CIFAR_8, DataConfig(image_size=32, val_resize=36, mean="pixel"),
         "data.mean is other than this there and pixel here"),
    ],
)  # fmt: skip
def test_settings_other_than_the_file_says_are_refused(tmp_path, model, data, message):
    weights = exported(tmp_path, ".safetensors", CIFAR_8)
    with pytest.raises(ValueError, match=message):
        checkpoint_of(weights, Config(data, model), None)


def with_nan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state["layer1.0.conv1.weight"][0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda state: {"epoch": 3, "lr": 0.1}, "holds epoch, lr, not tensors by name; write"),
        (lambda state: list(state.values()), "it holds list, not tensors by name"),
        (lambda state: {"conv1.weight": Path}, "weights.pth cannot be used: "),  # code
        (with_nan, "are not finite: layer1.0.conv1.weight; copy it again"),
        (None, "weights.pth cannot be used: .*; copy it again"),  # cut
    ],
)
def test_a_file_that_holds_something_else_is_refused(weights, tmp_path, changed, message):
    if changed is None:
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        torch.save(changed(torch.load(weights, weights_only=True)), weights)
    with pytest.raises(ValueError, match=message):
        checkpoint_of(weights, Config(SMALL, RESNET_18), class_file(tmp_path))


def test_damaged_safetensors_are_refused(tmp_path):
    weights = exported(tmp_path, ".safetensors", CIFAR_8)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="weights.safetensors cannot be used: .*; copy it again"):
        checkpoint_of(weights, Config(SMALL, CIFAR_8), None)
    content = read_verified(tmp_path / "from.pt")["model"]
    tensors = {name: value.contiguous() for name, value in content.items()}
    for text, error in (
        ({"trainyard": "1"}, "KeyError: 'preprocessing'"),
        ({"trainyard": "1", "preprocessing": "{}", "network": "{"}, "JSONDecodeError: "),
    ):
        save_file(tensors, weights, text)
        with pytest.raises(ValueError, match=rf"its metadata is damaged \({error}"):
            checkpoint_of(weights, Config(SMALL, CIFAR_8), None)


@pytest.mark.parametrize("ours", [True, False])
def test_what_other_programs_say_in_safetensors_is_passed_over(tmp_path, ours):
    weights = exported(tmp_path, ".safetensors", CIFAR_8)
    with safe_open(weights, "pt") as file:
        text = file.metadata() if ours else {}
    save_file(load_file(weights), weights, text | {"format": "pt"})
    description = read_weights(weights).description
    assert (description and description.network["depth"]) == (8 if ours else None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\n\nb\n", "classes.txt: line 2 is empty; write one name a line"),
        ("a\nb\na\n", "classes.txt names a twice; write each class once"),
        ("", "line 1 is empty"),
        (None, "classes.txt cannot be read as text: .*No such file"),
    ],
)
def test_a_wrong_class_list_is_refused(tmp_path, lines, message):
    path = tmp_path / "classes.txt"
    if lines is not None:
        path.write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_class_list(path)


def test_of_synset_words_the_names_are_taken(tmp_path):
    path = class_file(tmp_path, "n01440764 tench, Tinca tinca", "n01443537 goldfish")
    assert read_class_list(path) == ["n01440764", "n01443537"]
    assert read_class_list(class_file(tmp_path, "polar bear", "owl")) == ["polar bear", "owl"]


@pytest.fixture(scope="module")
def imported(small_data, tmp_path_factory) -> Path:
    """A checkpoint of ResNet-18, its classes those of the data, through the command."""
    folder = tmp_path_factory.mktemp("imported")
    classes = sorted(path.name for path in (small_data / "train").iterdir() if path.is_dir())
    write_checkpoint(folder / "from.pt", RESNET_18, classes=classes)
    export.main([f"--checkpoint={folder}/from.pt", f"--out={folder}/weights.pth"])
    (folder / "small.yaml").write_text(
        "data: {image_size: 32, val_resize: 36, local_batch_size: 8, threads: 1}\n"
        "model: {depth: 18, zero_init_last_norm: false}\noptim: {amp: 'off'}\nrun: {device: cpu}\n"
    )
    export.main([
        f"--weights={folder}/weights.pth", f"--config={folder}/small.yaml",
        f"--data.root={small_data}", f"--out={folder}/imported.pt",
    ])  # fmt: skip
    return folder / "imported.pt"


def test_evaluate_counts_what_predict_predicts_from_an_imported_checkpoint(
    imported, small_data, tmp_path
):
    options = f"--data.root={small_data}", f"--json={tmp_path}/counted.json"
    evaluate_here("--checkpoint", str(imported), *options)
    counted = json.loads((tmp_path / "counted.json").read_text())
    images = sorted(str(path) for path in (small_data / "val").rglob("*.JPEG"))
    predict.main([*images, f"--checkpoint={imported}", f"--json={tmp_path}/predicted.json"])
    predicted = json.loads((tmp_path / "predicted.json").read_text())["predictions"]
    assert [one["image"] for one in predicted] == images and len(images) == 30

    def right(one, places: int) -> bool:
        return Path(one["image"]).parent.name in [guess["class"] for guess in one["top"][:places]]

    assert counted["images"] == 30
    assert counted["top1_correct"] == sum(right(one, 1) for one in predicted)
    assert counted["top5_correct"] == sum(right(one, 5) for one in predicted)
    assert 0 < counted["top1_correct"] < counted["top5_correct"] < 30


def test_no_training_goes_on_from_an_imported_checkpoint(imported, small_data, tmp_path):
    with pytest.raises(Reported, match=r"imported\.pt holds weights imported from") as error:
        train_here(small_data, tmp_path, f"--resume={imported}")
    assert "or to a new run as --init" in error.value.message


def test_a_config_without_data_settings_can_be_given_a_root(imported, small_data, tmp_path):
    config = tmp_path / "net.yaml"
    config.write_text("model: {depth: 18}\n")
    weights = shutil.copy(imported.with_name("weights.pth"), tmp_path)
    export.main([
        f"--weights={weights}", f"--config={config}", f"--data.root={small_data}",
        f"--out={tmp_path}/a.pt",
    ])  # fmt: skip
    assert len(read_verified(tmp_path / "a.pt")["classes"]) == 10
    with pytest.raises(ConfigError, match="--config none.yaml cannot be read"):
        export.main([f"--weights={weights}", "--config=none.yaml", f"--out={tmp_path}/a.pt"])
