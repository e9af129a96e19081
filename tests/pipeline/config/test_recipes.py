"""The recipes come out with the rates, sizes and shares that their sources have, in our units."""

import numpy as np
import pytest
from jobs import REPOSITORY

from pipeline.config import Config
from pipeline.config.idle import shown_idle
from pipeline.config.reading import CONFIGS, load_config
from pipeline.data.sizes import growing_sizes
from pipeline.train.schedule import make_schedule, run_length

IMAGES = 1_281_167
NAMES = sorted(path.stem for path in (CONFIGS / "recipes").iterdir())
# Name -> first, greatest and last rate of the source, and the epochs.
RATES = {
    "torchvision-v2": (0.005, 0.5, 0.0, 600), "timm-a1": (1e-4, 5e-3, 1e-6, 600),
    "timm-a3": (1e-4, 8e-3, 1e-6, 100), "ffcv-16": (1.7e-4, 1.7, 0.0, 16),
    "ffcv-40": (1.7e-4, 1.7, 0.0, 40), "ffcv-88": (1.7e-4, 1.7, 0.0, 88),
    "lars-64gpu": (0.0128, 12.8, 1e-4, 48), "fixres": (0.1, 0.8, 0.0008, 90),
}  # fmt: skip
RAMPS = {"ffcv-16": (11, 13), "ffcv-40": (29, 34), "ffcv-88": (65, 76)}
"""Epochs between which FFCV's side grows from 160 to 192 pixels."""


def recipe(name: str) -> Config:
    return load_config([f"--config={CONFIGS / 'recipes' / name}.yaml"], "", "")


def test_every_recipe_is_among_those_whose_rates_are_known():
    assert sorted(RATES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_those_of_the_source(name):
    config, (first, peak, last, epochs) = recipe(name), RATES[name]
    schedule, batch = make_schedule(config, IMAGES), config.data.global_batch_size
    steps = run_length(config.schedule, IMAGES, batch)
    rates = [schedule.lr(step * batch) for step in range(0, steps, 10)]
    assert rates[0] == pytest.approx(first) and schedule.peak_lr == pytest.approx(peak)
    assert max(rates) == pytest.approx(peak, rel=0.01)
    assert schedule.lr((steps - 1) * batch) == pytest.approx(last, rel=0.01, abs=peak * 2e-4)
    assert config.schedule.epochs == epochs
    assert shown_idle(config) == "", "a setting without effect"


@pytest.mark.parametrize("name", sorted(RAMPS))
def test_sides_are_those_of_ffcvs_ramp_at_every_epoch(name):
    config, (start, end) = recipe(name), RAMPS[name]
    batch, epochs = config.data.global_batch_size, int(config.schedule.epochs or 0)
    sizes = growing_sizes(config.data, IMAGES, run_length(config.schedule, IMAGES, batch))
    assert sizes is not None
    for epoch in range(epochs):
        wanted = int(np.round(np.interp(epoch, [start, end], [160, 192]) / 32)) * 32
        first_whole_step = -(-epoch * IMAGES // batch)
        assert sizes.of_step(first_whole_step) == wanted


@pytest.mark.parametrize(
    ("name", "ratio"), [("timm-a1", 0.95), ("timm-a3", 0.95), ("ffcv-16", 224 / 256),
                        ("fixres", 224 / 256), ("torchvision-v2", 224 / 232)]
)  # fmt: skip
def test_the_crop_of_validation_has_the_share_of_the_source(name, ratio):
    data = recipe(name).data
    assert data.view_size / data.val_resize == pytest.approx(ratio, abs=0.004)


def test_the_average_has_torchvisions_adjusted_decay():
    optim = recipe("torchvision-v2").optim
    assert optim.ema_decay == pytest.approx(1 - (1 - 0.99998) * 1024 * 32 / 600, abs=1e-7)


def test_the_large_batch_has_the_momentum_of_mlperfs_reference_point():
    assert recipe("lars-64gpu").optim.momentum == 0.94


def test_the_page_has_every_recipe():
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert [name for name in NAMES if f"{name}.yaml" not in page] == []
