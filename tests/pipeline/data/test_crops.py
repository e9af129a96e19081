"""Plans: boxes inside the image, the published distributions, and one plan per position."""

import math

import numpy as np
import pytest

from pipeline.data.crops import CenterCrop, RandomResizedCrop, ScaleJitter
from pipeline.data.order import SCHEME_VERSION, Stream, random_words, uniform

PLANNERS = [
    RandomResizedCrop(color_std=0.1),
    RandomResizedCrop(size=64, area=(0.5, 0.5), aspect=(1.0, 1.0), flip=False),
    ScaleJitter(color_std=0.1),
    ScaleJitter(size=64, short_side=(64, 64), flip=False),
    CenterCrop(),
    CenterCrop(size=64, resize=64),
]
ODD_SIZES = [(1, 1), (1, 500), (500, 1), (2, 3), (10_000, 10_000), (30_000, 1), (3, 20_000), (0, 0)]


def plan_images(planner, heights, widths, seed=0, start=0):
    heights, widths = np.asarray(heights, np.int32), np.asarray(widths, np.int32)
    words = random_words(seed, Stream.AUGMENT, start, len(heights), planner.words_per_position)
    return planner.plan(heights, widths, words)


def plan_copies(planner, height, width, count=20_000):
    return plan_images(planner, np.full(count, height), np.full(count, width))


@pytest.mark.parametrize("planner", PLANNERS, ids=repr)
def test_boxes_lie_inside_images_of_any_size(planner):
    rng = np.random.default_rng(0)
    random_sizes = np.exp(rng.uniform(0, math.log(8000), (4000, 2))).astype(int)
    sizes = np.concatenate([np.repeat(ODD_SIZES, 200, axis=0), random_sizes])
    plan = plan_images(planner, sizes[:, 0], sizes[:, 1])
    start, extent = plan.boxes[:, :2].astype(float), plan.boxes[:, 2:].astype(float)
    assert (start >= 0).all()
    assert (extent >= 1).all()
    assert (start + extent <= np.maximum(sizes, 1)).all()
    count = len(sizes)
    assert (plan.boxes.shape, plan.boxes.dtype) == ((count, 4), np.float32)
    assert (plan.flips.shape, plan.flips.dtype) == ((count,), np.int32)
    assert (plan.offsets.shape, plan.offsets.dtype) == ((count, 3), np.float32)
    assert plan.shape == (planner.size, planner.size)
    assert all(array.flags.c_contiguous for array in (plan.boxes, plan.flips, plan.offsets))


@pytest.mark.parametrize("planner", PLANNERS, ids=repr)
def test_boxes_at_the_far_edge_do_not_pass_it_by_rounding(planner):
    sides = np.arange(1, 3000, dtype=np.int32)
    words = np.zeros((len(sides), planner.words_per_position), dtype=np.uint64)
    words[:, 1:] = 2**64 - 1  # word 0 is ScaleJitter's shorter side
    words[:, :1] = (np.arange(len(sides)) * 2**52).astype(np.uint64)[:, None]
    boxes = planner.plan(sides, 3 * sides // 2 + 1, words).boxes.astype(float)
    assert (boxes[:, 0] + boxes[:, 2] <= sides).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 3 * sides // 2 + 1).all()


@pytest.mark.parametrize("planner", PLANNERS, ids=repr)
def test_a_position_has_the_same_plan_in_every_batch(planner):
    heights, widths = np.random.default_rng(1).integers(1, 700, (2, 67))
    whole = plan_images(planner, heights, widths, start=1000)
    for first, count in ((0, 1), (5, 3), (13, 54), (66, 1)):
        part = slice(first, first + count)
        alone = plan_images(planner, heights[part], widths[part], start=1000 + first)
        for name in ("boxes", "flips", "offsets"):
            assert np.array_equal(getattr(alone, name), getattr(whole, name)[part])


@pytest.mark.parametrize("planner", [RandomResizedCrop, ScaleJitter])
def test_half_are_flipped_and_switching_an_option_off_leaves_the_other_draws_alone(planner):
    everything = plan_copies(planner(color_std=0.1), 400, 500)
    nothing = plan_copies(planner(flip=False, color_std=None), 400, 500)
    assert np.array_equal(everything.boxes, nothing.boxes)
    assert set(everything.flips) == {0, 1} and everything.offsets.all()
    assert abs(everything.flips.mean() - 0.5) < 0.02
    assert not nothing.flips.any() and not nothing.offsets.any()


def test_random_resized_crop_has_the_published_area_and_aspect():
    plan = plan_copies(RandomResizedCrop(), 60_000, 60_000)  # the area exceeds 32 bits
    boxes = plan.boxes.astype(float)
    assert np.array_equal(boxes, np.rint(boxes))
    area = boxes[:, 2] * boxes[:, 3] / 60_000**2
    aspect = boxes[:, 3] / boxes[:, 2]
    assert 0.0799 < area.min() < 0.085
    assert 0.98 < area.max() <= 1
    assert 0.7495 < aspect.min() < 0.752
    assert 1.328 < aspect.max() < 1.334
    # Uniform in area where no try is refused: below 0.75 every permitted aspect fits a square.
    middle = area[area < 0.75]
    assert abs(middle.mean() - (0.08 + 0.75) / 2) < 0.005
    # Uniform in log aspect there.
    assert abs(np.log(aspect[area < 0.75]).mean()) < 0.005
    assert abs(np.log(aspect[area < 0.75]).std() - math.log(16 / 9) / math.sqrt(12)) < 0.004


def torchvision_box(planner, height, width, draws):
    """RandomResizedCrop.get_params of torchvision, fed with one position's uniform numbers."""
    for attempt in range(10):
        low, high = planner.area
        area = height * width * (low + draws[attempt] * (high - low))
        low, high = (math.log(ratio) for ratio in planner.aspect)
        aspect = math.exp(low + draws[10 + attempt] * (high - low))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < planner.aspect[0]:
        h = round(width / planner.aspect[0])
    elif width / height > planner.aspect[1]:
        w = round(height * planner.aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("planner", [RandomResizedCrop(), RandomResizedCrop(area=(0.8, 1.0))])
def test_random_resized_crop_is_torchvisions_algorithm(planner):
    heights, widths = np.random.default_rng(2).integers(1, 600, (2, 2000))
    plan = plan_images(planner, heights, widths)
    draws = uniform(random_words(0, Stream.AUGMENT, 0, 2000, planner.words_per_position))
    for index, box in enumerate(plan.boxes.tolist()):
        expected = torchvision_box(planner, int(heights[index]), int(widths[index]), draws[index])
        assert tuple(box) == expected


@pytest.mark.parametrize("aspect, height, width, box", [
    # torchvision: too wide: h = H, w = round(H * 4 / 3); too tall: w = W, h = round(W / (3 / 4)).
    ((3 / 4, 4 / 3), 100, 1000, [0, 433, 100, 133]),
    ((3 / 4, 4 / 3), 1000, 90, [440, 0, 120, 90]),
    ((1.2, 1.3), 120, 120, [10, 0, 100, 120]),
])  # fmt: skip
def test_random_resized_crop_falls_back_to_the_central_box(aspect, height, width, box):
    planner = RandomResizedCrop(area=(1.0, 1.0), aspect=aspect)
    assert plan_copies(planner, height, width, 50).boxes.tolist() == [box] * 50


def test_scale_jitter_draws_every_shorter_side_alike():
    plan = plan_copies(ScaleJitter(), 480, 640, 45_000)
    sides = 224 * 480 / plan.boxes[:, 2].astype(float)
    assert np.allclose(sides, np.rint(sides), atol=1e-3)
    counts = np.bincount(np.rint(sides).astype(int), minlength=481)
    assert counts[:256].sum() == 0 and len(counts) == 481
    assert counts[256:].min() > 130 and counts[256:].max() < 270  # 200 +- 5 standard deviations


def test_scale_jitter_crops_at_every_whole_pixel_of_the_resized_image():
    planner = ScaleJitter(size=8, short_side=(10, 10))
    boxes = plan_copies(planner, 100, 200, 3000).boxes.astype(float)
    assert np.allclose(boxes[:, 2:], 80)  # 8 / 10 of the shorter side
    assert {round(y, 4) for y in boxes[:, 0]} == {0, 10, 20}
    assert {round(x, 4) for x in boxes[:, 1]} == {10 * x for x in range(13)}


@pytest.mark.parametrize("height, width, box", [
    # By hand from torchvision: Resize(256) truncates the longer side, CenterCrop(224) starts at
    # round((side - 224) / 2), half to even; both mapped back by side / resized side.
    (375, 500, (16 * 375 / 256, 58 * 500 / 341, 224 * 375 / 256, 224 * 500 / 341)),
    (500, 375, (58 * 500 / 341, 16 * 375 / 256, 224 * 500 / 341, 224 * 375 / 256)),
    (256, 256, (16, 16, 224, 224)),
    (300, 224, (59 * 300 / 342, 14, 224 * 300 / 342, 196)),
    (224, 300, (14, 59 * 300 / 342, 196, 224 * 300 / 342)),
    # 59.5 and 58.5 above: both go to the even side.
    (300, 402, (16 * 300 / 256, 60 * 402 / 343, 224 * 300 / 256, 224 * 402 / 343)),
    (402, 300, (60 * 402 / 343, 16 * 300 / 256, 224 * 402 / 343, 224 * 300 / 256)),
    (1, 1, (0, 0, 1, 1)),
    (1, 500, (0, 249.5, 1, 1)),  # 7/8 of a pixel, widened to one about its middle
])  # fmt: skip
def test_center_crop_is_torchvisions(height, width, box):
    assert np.allclose(plan_copies(CenterCrop(), height, width, 1).boxes[0], box, atol=1e-3)


@pytest.mark.parametrize("planner", [RandomResizedCrop, ScaleJitter])
def test_colour_offsets_follow_the_principal_components(planner):
    offsets = plan_copies(planner(color_std=0.1), 300, 400, 100_000).offsets.astype(float)
    # AlexNet 4.1 with ImageNet's components: deviations of 0.1 * 255 * eigenvalue along them.
    assert np.abs(offsets.mean(axis=0)).max() < 0.05
    variances, components = np.linalg.eigh(np.cov(offsets.T))
    assert np.allclose(np.sqrt(variances[::-1]), [5.546, 0.4794, 0.1148], rtol=0.02)
    assert abs(abs(components[:, 2] @ [-0.5675, -0.5808, -0.5836]) - 1) < 1e-3
    assert abs(abs(components[:, 1] @ [0.7192, -0.0045, -0.6948]) - 1) < 1e-2
    doubled = plan_copies(planner(color_std=0.2), 300, 400, 10).offsets
    assert np.allclose(doubled, 2 * offsets[:10], rtol=1e-5)


def test_plans_are_the_ones_of_scheme_version_1():
    # Golden: computed once with this code (numpy 2.4.6). If they change on purpose, raise
    # SCHEME_VERSION. Not digests: exp, log and cos may differ in the last bit between processors.
    assert SCHEME_VERSION == 1
    crop = plan_images(RandomResizedCrop(color_std=0.1), [375, 500], [500, 333], seed=1, start=7)
    assert crop.boxes.tolist() == [[117, 250, 179, 162], [171, 28, 325, 248]]
    assert crop.flips.tolist() == [1, 0]
    expected = [[1.9773989, 1.4352578, 1.4556949], [5.062937, 4.497392, 4.2188554]]
    assert np.allclose(crop.offsets, expected, rtol=1e-6)
    jitter = plan_images(ScaleJitter(color_std=0.1), [375, 500], [500, 333], seed=1, start=7)
    expected = [
        [29.347826, 92.391304, 243.47826, 243.47826],
        [174.92012, 15.172662, 178.91374, 178.8777],
    ]
    assert np.allclose(jitter.boxes, expected, rtol=1e-6)
    assert jitter.flips.tolist() == [1, 0]
    expected = [[2.087975, 2.561181, 2.6292884], [4.1696935, 4.150604, 4.05569]]
    assert np.allclose(jitter.offsets, expected, rtol=1e-6)
