"""`pipeline.load`: the network, its classes, and pixels that are the loader's."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import cifar_archives
import jobs
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from weight_files import CLASSES, with_image, write_checkpoint

import pipeline
from pipeline import predict
from pipeline.api import BadImage, ConfigError, DamagedCheckpoint
from pipeline.config import DataConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.images import GivenImages
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import ValStream, val_planner

CPU = torch.device("cpu")
CONVERSION = 3  # levels: what a CMYK or YCbCr conversion, or a palette, may round otherwise

pytestmark = pytest.mark.usefixtures("one_thread")


def loaders_pixels(image_set, data: DataConfig, normalisation) -> torch.Tensor:
    """What validation sees of all images, (N, 3, H, W)."""
    decoder = "none" if data.dataset == "cifar-10" else "cpu"
    settings = DecodeSettings(decoder, CPU, 1, normalisation=normalisation)
    stream = ValStream(image_set, val_planner(data))
    count = len(image_set)
    with closing(Loader(stream, [np.arange(count)], 1, count, settings)) as loader:
        return next(loader).images.clone()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Files of many sizes, larger and smaller than the view, of every kind that is decoded."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    found = []
    for number, size in enumerate([(500, 375), (90, 333), (36, 36), (31, 20), (7, 9), (1, 300)]):
        small = rng.integers(0, 255, (size[1] // 3 + 1, size[0] // 3 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize(size)
        for kind, mode in (("jpg", "RGB"), ("jpg", "L"), ("png", "RGB"), ("bmp", "RGB")):
            found.append(folder / f"{number}-{mode}.{kind}")
            image.convert(mode).save(found[-1])
    return found


@pytest.mark.parametrize(
    ("data", "normalisation"),
    [
        (DataConfig(image_size=32, val_resize=36, threads=1), IMAGENET),
        (DataConfig(image_size=32, val_resize=36, threads=1), with_image(32)),
        (DataConfig(image_size=224, val_resize=256, threads=1), IMAGENET),
        (DataConfig(image_size=64, val_size=48, val_resize=48, threads=1), with_image(32)),
    ],
)
def test_an_image_is_seen_as_in_validation(data, normalisation, photos, tmp_path):
    """Every pixel is the loader's; normalisation in float32 rounds its last bits."""
    path = write_checkpoint(tmp_path / "a.pt", data=data, normalisation=normalisation)
    seen = loaders_pixels(
        GivenImages(photos), data, normalisation.for_shape((data.view_size, data.view_size))
    )
    transform = pipeline.load(path).transform
    levels = torch.from_numpy(normalisation.std)[:, None, None]
    for photo, wanted in zip(photos, seen, strict=True):
        found = transform(photo)
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        assert ((found - wanted) * levels).abs().max() < 1e-3, photo.name
        with Image.open(photo) as image:
            assert torch.equal(transform(image), found)


def test_cmyk_is_converted_as_nearly_as_two_decoders_do(tmp_path):
    photo = tmp_path / "a.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((60, 40)).convert("CMYK").save(photo)
    data = DataConfig(image_size=32, val_resize=36, threads=1)
    (wanted,) = loaders_pixels(GivenImages([photo]), data, IMAGENET)
    found = pipeline.load(write_checkpoint(tmp_path / "a.pt", data=data)).transform(photo)
    assert ((found - wanted) * torch.from_numpy(IMAGENET.std)[:, None, None]).abs().max() < (
        CONVERSION + 0.01
    )


def test_images_of_cifar_are_seen_as_they_are(tmp_path):
    cifar_archives.write(tmp_path / "cifar")
    data = DataConfig(
        dataset="cifar-10", root=str(tmp_path / "cifar"), image_size=32, train_crop="padded",
        color_std=None, val_resize=32,
    )  # fmt: skip
    path = write_checkpoint(tmp_path / "a.pt", data=data)
    seen = loaders_pixels(open_cifar(Path(data.root), None)[1], data, IMAGENET)
    transform = pipeline.load(path).transform
    images = pipeline.images(data.root, "val", dataset="cifar-10", transform=transform)
    for (found, _), wanted in zip(images, seen, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_the_network_answers_as_predict_does(small_data, tmp_path, capsys):
    path = write_checkpoint(tmp_path / "a.pt")
    model, classes, transform = pipeline.load(path, device="cpu")
    assert classes == CLASSES and not model.training
    images = pipeline.images(small_data, "val", transform=transform)
    batch = next(iter(DataLoader(images, batch_size=len(images))))[0]
    with torch.no_grad():
        wanted = model(batch).softmax(1)
    files = [str(place) for place in images.paths]
    predict.main([f"--checkpoint={path}", f"--json={tmp_path}/a.json", *files])
    for row, one in zip(
        wanted, json.loads((tmp_path / "a.json").read_text())["predictions"], strict=True
    ):
        best = [guess["label"] for guess in one["top"]]
        assert best == row.topk(5).indices.tolist()
        assert [guess["probability"] for guess in one["top"]] == pytest.approx(
            row[best].tolist(), rel=1e-4
        )


def test_weights_are_chosen_as_by_the_commands(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt", ema=True)
    found = {kind: pipeline.load(path, weights=kind)[0].fc.weight for kind in ("raw", "ema")}
    assert torch.equal(found["raw"], -found["ema"])
    assert torch.equal(pipeline.load(path).model.fc.weight, found["ema"])
    with pytest.raises(ValueError, match="has no EMA of the weights"):
        pipeline.load(write_checkpoint(tmp_path / "b.pt"), weights="ema")


def test_loading_draws_none_of_the_callers_random_numbers(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt")
    torch.manual_seed(1234)  # not run.seed
    before = torch.get_rng_state()
    pipeline.load(path, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_runs_folder_stands_for_its_best_checkpoint(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is a run without checkpoints/best.pt"):
        pipeline.load(tmp_path)
    write_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert pipeline.load(tmp_path).classes == CLASSES


def test_what_cannot_be_loaded_is_an_error_that_says_why(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="gone.pt does not exist; .* or of a run's folder"):
        pipeline.load(tmp_path / "gone.pt")
    with pytest.raises(ConfigError, match="is a folder"):
        pipeline.load(tmp_path)
    with pytest.raises(ConfigError, match="weights=best must be one of auto, raw, ema"):
        pipeline.load(path, weights="best")
    with pytest.raises(ConfigError, match="device='gpu' must be auto, cpu, cuda or a torch.device"):
        pipeline.load(path, device="gpu")
    with pytest.raises(ConfigError, match="device=cuda:99 is not there: PyTorch can use"):
        pipeline.load(path, device="cuda:99")
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DamagedCheckpoint, match=r"cut.pt is damaged"):
        pipeline.load(tmp_path / "cut.pt")


def test_a_file_that_is_no_image_is_named(tmp_path, photos):
    transform = pipeline.load(write_checkpoint(tmp_path / "a.pt")).transform
    for name, content in (("text.jpg", b"no image"), ("cut.jpg", photos[0].read_bytes()[:2000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage, match=f"the image .*{name} cannot be used"):
            transform(tmp_path / name)
    with pytest.raises(BadImage, match=r"gone.jpg cannot be used: it cannot be read"):
        transform(tmp_path / "gone.jpg")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_without_a_number_is_the_current_one_and_a_word_the_first(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt")
    with torch.cuda.device(1):
        for device, index in ((torch.device("cuda"), 1), ("cuda", 0), ("auto", 0)):
            model = pipeline.load(path, device=device).model
            assert next(model.parameters()).device.index == index
            assert torch.cuda.current_device() == 1


def test_a_network_looks_at_an_image_without_dali_and_horovod(tmp_path, photos):
    """As where neither is installed."""
    path = write_checkpoint(tmp_path / "a.pt")
    model, classes, transform = pipeline.load(path, device="cpu")
    with torch.no_grad():
        wanted = classes[model(transform(photos[0])[None]).argmax()]
    code = (
        "import sys; sys.modules |= {'nvidia.dali': None, 'horovod': None}\n"  # not installed
        "import pipeline; model, classes, transform = pipeline.load(sys.argv[1], device='cpu')\n"
        "print(classes[model(transform(sys.argv[2])[None]).argmax()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, photos[0]], env=jobs.environment(), check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{wanted}\n"


@pytest.mark.gpu
def test_a_network_is_loaded_onto_a_gpu(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt")
    model = pipeline.load(path, device="cuda").model
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        found, wanted = model(images.cuda()).cpu(), pipeline.load(path, device="cpu").model(images)
    assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-2)
