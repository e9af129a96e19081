"""`predict`: the view, the arithmetic and the names of validation; images it cannot use."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from weight_files import CLASSES, with_image, write_checkpoint

from pipeline import predict
from pipeline.config import ConfigError, DataConfig
from pipeline.data.crops import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import ValStream
from pipeline.train.checkpoint import read

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.pt")


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path)
    return path


def predicted(tmp_path: Path, *argv: str) -> list[dict]:
    predict.main([*argv, f"--json={tmp_path}/found.json"])
    return json.loads((tmp_path / "found.json").read_text())["predictions"]


def test_images_are_seen_as_in_validation(small_data, tmp_path):
    """Seven images in batches of three, against the loader of validation and a plain softmax."""
    normalisation = with_image(32)
    data = DataConfig(image_size=32, val_resize=36, local_batch_size=3, threads=1)
    path = write_checkpoint(tmp_path / "a.pt", data=data, normalisation=normalisation)
    val_set = open_manifest(small_data, "val")
    settings = DecodeSettings("cpu", CPU, 1, normalisation=normalisation)
    stream = ValStream(val_set, CenterCrop(32, 36))
    with closing(Loader(stream, [np.arange(7)], 1, 7, settings)) as loader:
        images = next(loader).images
    model = read(path).build(CPU)
    with torch.no_grad():
        wanted = model(images).softmax(1)
    found = predicted(tmp_path, f"--checkpoint={path}", *[str(val_set.path(i)) for i in range(7)])
    for i, one in enumerate(found):
        assert one["image"] == str(val_set.path(i))
        assert [guess["label"] for guess in one["top"]] == wanted[i].topk(5).indices.tolist()
        assert [guess["probability"] for guess in one["top"]] == pytest.approx(
            wanted[i].topk(5).values.tolist(), rel=1e-4
        )


def test_each_image_gets_its_five_best_names_for_a_person(checkpoint, photo, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "synset_words.txt").write_text(f"{CLASSES[0]} tench, Tinca tinca\n{CLASSES[1]} goldf")
    other = photo.with_suffix(".png")
    Image.open(photo).save(other)
    predict.main([f"--checkpoint={checkpoint}", f"--data.root={data}", str(photo), str(other)])
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[6]) == (str(photo), str(other)) and len(lines) == 12
    shares = [float(line.split("%")[0]) for line in lines[1:6]]
    assert shares == sorted(shares, reverse=True)
    (one,) = predicted(tmp_path, f"--checkpoint={checkpoint}", f"--data.root={data}", str(photo))
    words = {CLASSES[0]: "tench, Tinca tinca", CLASSES[1]: "goldf"}
    for guess, line in zip(one["top"], lines[1:6], strict=True):
        assert guess["class"] == CLASSES[guess["label"]]
        assert guess["name"] == words.get(guess["class"], guess["class"])
        assert line.endswith(f"%  {guess['name']}")


def test_the_average_of_the_weights_is_used_unless_raw_ones_are_asked_for(photo, tmp_path, capsys):
    path, found = write_checkpoint(tmp_path / "a.pt", ema=True), {}
    for options, kind, said in (
        ([], "ema", "EMA of the weights"),
        (["--weights=raw"], "raw", "raw weights"),
        (["--weights=ema"], "ema", "EMA of the weights"),
    ):
        (one,) = predicted(tmp_path, f"--checkpoint={path}", str(photo), *options)
        assert found.setdefault(kind, one["top"]) == one["top"]
        assert capsys.readouterr().out.splitlines()[0] == f"{path} ({said})"
        assert json.loads((tmp_path / "found.json").read_text())["weights_kind"] == kind
    assert found["ema"][0]["label"] != found["raw"][0]["label"]


def test_an_average_that_is_not_there_is_refused(checkpoint, photo):
    with pytest.raises(ValueError, match=f"^checkpoint {checkpoint} has no EMA of the weights"):
        predict.main([f"--checkpoint={checkpoint}", str(photo), "--weights=ema"])
    with pytest.raises(ConfigError, match="--weights eam must be one of raw, ema"):
        predict.main([f"--checkpoint={checkpoint}", str(photo), "--weights=eam"])


def test_fewer_classes_than_five_are_all_shown(photo, tmp_path):
    path = write_checkpoint(tmp_path / "a.pt", classes=["cat", "dog"])
    (one,) = predicted(tmp_path, f"--checkpoint={path}", str(photo))
    assert {guess["name"] for guess in one["top"]} == {"cat", "dog"}
    assert sum(guess["probability"] for guess in one["top"]) == pytest.approx(1)


def test_a_network_of_cifar_takes_image_files(photo, tmp_path):
    data = DataConfig(dataset="cifar-10", train_crop="padded", image_size=32, threads=1)
    path = write_checkpoint(tmp_path / "a.pt", data=data)
    small = tmp_path / "small.png"
    pixels = np.asarray(Image.open(photo).resize((32, 32)))
    Image.fromarray(pixels).save(small)
    found = predicted(tmp_path, f"--checkpoint={path}", str(small), str(photo))
    trained = read(path)
    model, normal = trained.build(CPU), trained.normalisation
    images = torch.from_numpy((pixels - normal.mean) / normal.std).permute(2, 0, 1)[None]
    with torch.no_grad():  # 32 x 32 pixels are taken as they are
        wanted = model(images.contiguous(memory_format=torch.channels_last)).softmax(1)[0]
    assert found[0]["top"][0]["label"] == int(wanted.argmax())
    assert found[0]["top"][0]["probability"] == pytest.approx(float(wanted.max()), rel=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "photo.jpg cannot be used: the file is empty; give a JPEG, PNG, "),
        (b"no picture at all", "photo.jpg cannot be used: no image header; give a JPEG, PNG, "),
        (None, "photo.jpg cannot be used: cannot be decoded: it has no end marker"),  # cut
    ],
)
def test_an_image_that_cannot_be_used_is_named(checkpoint, photo, tmp_path, content, message):
    good = tmp_path / "good.png"
    Image.open(photo).save(good)
    photo.write_bytes(photo.read_bytes()[:700] if content is None else content)
    with pytest.raises(BadImage, match=message):
        predict.main([f"--checkpoint={checkpoint}", str(good), str(photo)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a.jpg"], "--checkpoint is missing; give the path of a .pt file, or of a run's folder"),
        (["--checkpoint=none.pt", "a.jpg"], "--checkpoint none.pt does not exist"),
        (["--checkpoint=C"], "no image is given; name one or more files after the options"),
        (["--checkpoint=C", "none.jpg"], "the image none.jpg does not exist; give the path"),
        (["--checkpoint=C", "tests"], "the image tests is a folder; give the path of an image"),
        (["--chekpoint=C", "C"], r"no setting --chekpoint; did you mean --checkpoint\?"),
        (["--checkpoint=C", "C", "--optim.am=off"], r"did you mean --optim.amp\?"),
        (["--checkpoint=C", "C", "--model.depth=18"], "--model.depth comes from the checkpoint; "),
        (["--checkpoint=C", "C", "--config=a.yaml"], "--config comes from the checkpoint; --help"),
        (["--checkpoint=C", "C", "--json=none/a.json"], "--json .* the folder none does not exist"),
    ],
)
def test_a_wrong_call_is_answered_with_a_right_one(checkpoint, argv, message):
    with pytest.raises(ConfigError, match=message):
        predict.main([argument.replace("C", str(checkpoint)) if argument.endswith("C") else argument
                      for argument in argv])  # fmt: skip


def test_fp32_is_possible_for_a_run_whose_decoder_wrote_half_precision(tmp_path, photo):
    data = DataConfig(image_size=32, val_resize=36, threads=1, output="float16")
    path = write_checkpoint(tmp_path / "a.pt", data=data, amp="bf16")
    with pytest.raises(ConfigError, match=r"set optim.amp=bf16 or fp16, or data.output=float32"):
        predicted(tmp_path, f"--checkpoint={path}", "--optim.amp=off", str(photo))
    options = ("--optim.amp=off", "--data.output=float32")
    found = predicted(tmp_path, f"--checkpoint={path}", *options, str(photo))
    plain = DataConfig(image_size=32, val_resize=36, threads=1)
    other = write_checkpoint(tmp_path / "b.pt", data=plain)
    assert found[0]["top"] == predicted(tmp_path, f"--checkpoint={other}", str(photo))[0]["top"]
