"""Weights out: what other programs read is the network of the checkpoint."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from weight_files import CIFAR_8, CLASSES, RESNET_18, SMALL, with_image, write_checkpoint

from pipeline.config import Config, ConfigError, ModelConfig
from pipeline.data.normalisation import IMAGENET
from pipeline.export import __main__ as export
from pipeline.export.__main__ import require_packages
from pipeline.export.onnx_file import Agreement, write_onnx
from pipeline.train.checkpoint import read, read_verified
from pipeline.train.weights import describe

CPU = torch.device("cpu")
PLAIN_18 = ModelConfig(depth=18, residual=False, zero_init_last_norm=False)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("resnet18") / "best.pt", RESNET_18)


def run(checkpoint: Path, out: Path) -> None:
    export.main([f"--checkpoint={checkpoint}", f"--out={out}"])


def test_safetensors_hold_the_tensors_and_say_what_they_are(tmp_path, capsys):
    normalisation = with_image(32)
    checkpoint = write_checkpoint(tmp_path / "a.pt", normalisation=normalisation)
    run(checkpoint, tmp_path / "a.safetensors")
    assert "CIFAR ResNet-8 A of step 7, 7 classes, 7" in capsys.readouterr().out
    wanted = read_verified(checkpoint)["model"]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        text = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    image = found.pop("preprocessing.mean_image")
    np.testing.assert_array_equal(image.numpy(), normalisation.image)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads(text["classes"]) == CLASSES
    assert json.loads(text["network"]) == {
        "family": "cifar", "residual": True, "depth": 8, "shortcut": "A"
    }  # fmt: skip
    preprocessing = json.loads(text["preprocessing"])
    assert (preprocessing["image_size"], preprocessing["resize"]) == (32, 36)
    assert preprocessing["mean"] == [100, 110, 120]
    assert preprocessing["std"] == [50, 60, 70]


def test_torchvisions_file_has_its_names_and_json_next_to_it(resnet18, tmp_path, capsys):
    run(resnet18, tmp_path / "a.pth")
    assert f"classes and preprocessing are in {tmp_path}/a.json" in capsys.readouterr().out
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    # 62 parameters and 3 buffers of each of 20 norm layers, as torchvision's resnet18 has them.
    assert len(state) == 122
    assert list(state)[:7] == [
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
        "bn1.num_batches_tracked", "layer1.0.conv1.weight",
    ]  # fmt: skip
    assert {"layer2.0.downsample.0.weight", "layer4.1.bn2.running_var", "fc.bias"} <= set(state)
    assert all(value.is_contiguous() for value in state.values())
    text = json.loads((tmp_path / "a.json").read_text())
    assert text["classes"] == CLASSES and text["name"] == "ResNet-18 B"
    assert text["preprocessing"]["mean"] == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize(
    ("model", "normalisation", "message"),
    [
        (CIFAR_8, IMAGENET, "torchvision has no CIFAR ResNet-8 A, .* export to .safetensors or"),
        (ModelConfig(depth=18, shortcut="A"), IMAGENET, "torchvision has no ResNet-18 A, "),
        (ModelConfig(depth=50, variant="v1"), IMAGENET, "torchvision has no ResNet-50 v1, "),
        (PLAIN_18, IMAGENET, "torchvision has no plain-18, "),
        (RESNET_18, with_image(32), r"was trained with a mean image \(data.mean=pixel\); export"),
    ],
)
def test_what_torchvision_does_not_have_is_refused(tmp_path, model, normalisation, message):
    checkpoint = write_checkpoint(tmp_path / "a.pt", model, normalisation=normalisation)
    with pytest.raises(ValueError, match=message):
        run(checkpoint, tmp_path / "a.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_onnx_computes_what_the_network_does_for_any_number_of_images(resnet18, tmp_path, capsys):
    run(resnet18, tmp_path / "a.onnx")
    assert "largest difference between onnxruntime and PyTorch " in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    model = read(resnet18).build(CPU)
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-3, atol=1e-3)
    text = {one.key: one.value for one in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(text["classes"]) == CLASSES
    assert json.loads(text["preprocessing"])["std"] == pytest.approx([58.395, 57.12, 57.375])


def test_onnx_takes_images_without_the_channel_means_where_there_is_a_mean_image(tmp_path):
    normalisation = with_image(32)
    checkpoint = write_checkpoint(tmp_path / "a.pt", normalisation=normalisation)
    run(checkpoint, tmp_path / "a.onnx")
    pixels = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)

    def normalised(subtracted: np.ndarray) -> np.ndarray:
        rows = (pixels - subtracted) / normalisation.std
        return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))

    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (found,) = session.run(["logits"], {"images": normalised(normalisation.mean)})
    model = read(checkpoint).build(CPU)
    with torch.no_grad():
        wanted = model(torch.from_numpy(normalised(normalisation.image))).numpy()
        other = model(torch.from_numpy(normalised(normalisation.mean))).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert np.abs(found - other).max() > 0.05


class OtherOnPaper(nn.Module):
    """A network that the exporter sees otherwise than it runs."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * (1.001 if torch.compiler.is_compiling() else 1.0)


def test_an_onnx_file_that_computes_something_else_is_not_written(tmp_path):
    description = describe(Config(SMALL, CIFAR_8), CLASSES, IMAGENET)
    with pytest.raises(
        ValueError, match=r"a.onnx is not written, largest difference .* allowed .*; "
    ):
        write_onnx(tmp_path / "a.onnx", OtherOnPaper(), description)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("difference", "largest", "holds"),
    [(1e-6, 1.0, True), (9e-5, 1.0, True), (2e-4, 1.0, False), (2e-4, 10.0, True),
     (float("nan"), 1.0, False), (float("nan"), float("nan"), False)],
)  # fmt: skip
def test_the_tolerance_is_a_share_of_the_largest_logit(difference, largest, holds):
    assert Agreement(difference, largest).holds == holds


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [([], "ema", "of step 7 (EMA of the weights), 7 classes"),
     (["--weights=ema"], "ema", "of step 7 (EMA of the weights), 7 classes"),
     (["--weights=raw"], "raw", "of step 7 (raw weights), 7 classes")],
)  # fmt: skip
def test_the_average_is_written_unless_raw_weights_are_asked_for(
    tmp_path, capsys, options, kind, said
):
    checkpoint = write_checkpoint(tmp_path / "a.pt", ema=True)
    export.main([f"--checkpoint={checkpoint}", f"--out={tmp_path}/a.safetensors", *options])
    assert said in capsys.readouterr().out
    content = read_verified(checkpoint)
    wanted = (content["ema"] if kind == "ema" else content)["model"]["fc.weight"]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("fc.weight"), wanted)


def test_an_average_that_the_checkpoint_does_not_have_is_refused(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"^checkpoint {checkpoint} has no EMA of the weights"):
        export.main([f"--checkpoint={checkpoint}", f"--out={tmp_path}/b.pth", "--weights=ema"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


@pytest.mark.parametrize(
    ("suffix", "hidden", "message"),
    [
        (".onnx", "onnxruntime", "a.onnx needs onnxruntime, which .* run pip install onnxruntime$"),
        (".onnx", "onnxscript", "a.onnx needs onnxscript, "),
        (".safetensors", "safetensors", "run pip install safetensors$"),
    ],
)
def test_a_missing_package_is_named_with_pips_line(monkeypatch, suffix, hidden, message):
    require_packages(Path(f"a{suffix}"))
    monkeypatch.setitem(sys.modules, hidden, None)  # as if not installed
    with pytest.raises(ConfigError, match=message):
        require_packages(Path(f"a{suffix}"))
    require_packages(Path("a.pth"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out=a.onnx"], "give either --checkpoint, a .pt .* or --weights"),
        (["--checkpoint=C", "--weights=C", "--out=a.onnx"], "give either --checkpoint"),
        (
            ["--checkpoint=C", "--weights=eam", "--out=a.onnx"],
            "--checkpoint, --weights is raw or ema",
        ),
        (["--weights=ema", "--out=a.pt"], "--weights ema chooses among the weights of"),
        (["--checkpoint=C"], "--out is missing; give the path of the file to write"),
        (["--checkpoint=none.pt", "--out=a.onnx"], "--checkpoint none.pt does not exist"),
        (["--checkpoint=C", "--out=a.onx"], r"suffix .onx and should have .* \.onnx"),
        (["--checkpoint=C", "--out=a"], r"--out a has the suffix \(none\) and should have .safet"),
        (["--checkpoint=C", "--out=none/a.onnx"], "the folder none does not exist; make it"),
        (["--checkpoint=C", "--out=a.onnx", "--classes=C"], "--classes goes with --weights"),
        (["--checkpoint=C", "--out=a.onnx", "--data.root=x"], "--data.root goes with --weights"),
        (["--checkpiont=C", "--out=a.onnx"], r"did you mean --checkpoint\?"),
        (["--checkpoint=C", "--out=a.onnx", "--model.depth=18"], "--model.depth comes from the"),
        (["--weights=none.pth", "--out=a.pt"], "--weights none.pth does not exist"),
        (["--weights=C", "--out=a.pt"], "--weights .* has the suffix .txt and should have .safe"),
        (["--weights=W", "--out=a.pth"], r"--out a.pth .* should have .pt$"),
        (["--weights=W", "--out=a.pt"], "--config is missing; give the YAML file of the settings"),
    ],
)
def test_a_wrong_call_is_answered_with_a_right_one(tmp_path, argv, message):
    for letter, name in (("C", "there.txt"), ("W", "there.pth")):
        (tmp_path / name).touch()
        argv = [re.sub(f"={letter}$", f"={tmp_path / name}", argument) for argument in argv]
    with pytest.raises(ConfigError, match=message):
        export.main(argv)


def test_the_checkpoint_of_a_run_is_exported(uninterrupted, tmp_path, capsys):
    run(uninterrupted / "checkpoints/best.pt", tmp_path / "a.safetensors")
    said = r"CIFAR ResNet-8 A of step \d+, 10 classes, 7"
    assert re.search(said, capsys.readouterr().out)
