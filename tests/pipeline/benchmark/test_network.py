"""Bytes and operations of a step, against what is known of ResNet-50 and -152."""

from __future__ import annotations

import pytest

from pipeline.benchmark.network import NormCase, kernel_bytes, network, norm_bytes, roofline

NETWORKS = {depth: network(depth, 224) for depth in (50, 152)}
# What one H200 was measured to reach.
H200 = (4.3e12, 790e12)


@pytest.mark.parametrize(
    ("depth", "layers", "outputs", "products", "parameters"),
    [(50, 53, 11.11e6, 54, 25.50e6), (152, 155, 22.55e6, 156, 60.04e6)],
)
def test_layers_and_outputs_are_those_of_the_paper(depth, layers, outputs, products, parameters):
    net = NETWORKS[depth]
    norms = sum(n * (2 if case.kind == "projection" else 1) for case, n in net.norms.items())
    assert norms == layers
    assert sum(n * case.outputs for case, n in net.norms.items()) == pytest.approx(outputs, 1e-3)
    assert len(net.products) == products
    assert sum(product.weights for product in net.products) == pytest.approx(parameters, 1e-3)


def test_both_networks_have_the_same_shapes_and_only_the_last_block_one_gradient():
    assert NETWORKS[50].norms.keys() == NETWORKS[152].norms.keys()
    assert NETWORKS[50].norms[NormCase(14, 1024, "add", True)] == 5
    assert NETWORKS[152].norms[NormCase(14, 1024, "add", True)] == 35
    ends = [case for case in NETWORKS[50].norms if case.kind != "plain" and not case.forked]
    assert ends == [NormCase(7, 2048, "add", False)]
    assert NETWORKS[50].pooled == (112 * 112 * 64, 56 * 56 * 64)


@pytest.mark.parametrize(("design", "megabytes"), [("eager", 341), ("fused", 235), ("folded", 198)])
def test_bytes_per_image_of_resnet50_are_those_counted_by_hand(design, megabytes):
    # Counted apart for each operator of the BN path, the sum of two gradients included.
    norms = NETWORKS[50].norms.items()
    moved = sum(n * sum(norm_bytes(design, case, 1, 2)) for case, n in norms)
    assert moved / 1e6 == pytest.approx(megabytes, rel=0.012)


def test_passes_of_each_operator_over_an_activation():
    plain, add = NormCase(1, 8, "plain", False), NormCase(1, 8, "add", True)
    both = NormCase(1, 8, "projection", True)
    one = 8 * 3 * 2  # bytes of an activation of 3 images in half precision
    bits = one / 16
    assert norm_bytes("eager", plain, 3, 2) == (5 * one, 8 * one)
    assert norm_bytes("eager", add, 3, 2) == (8 * one, 11 * one)
    assert norm_bytes("eager", both, 3, 2) == (11 * one, 16 * one)
    assert norm_bytes("fused", add, 3, 2) == (4 * one + bits, 9 * one + bits)
    assert norm_bytes("folded", plain, 3, 2) == (3 * one, 5 * one)
    assert norm_bytes("folded", add, 3, 2) == (4 * one + bits, 7 * one + bits)
    assert norm_bytes("folded", both, 3, 2) == (5 * one + bits, 10 * one + bits)
    assert kernel_bytes(both, 3, 2) == {
        "statistics": 2 * one,
        "normalize": 3 * one + bits,
        "gradient_sums": 5 * one + bits,
        "input_gradients": 5 * one,
    }
    # Without a second gradient what passed the ReLU is still written, for what was added.
    last = NormCase(1, 8, "add", False)
    assert kernel_bytes(last, 3, 2)["gradient_sums"] == 3 * one + bits


def test_operations_per_image():
    for depth, expected in ((50, 24.3e9), (152, 68.9e9)):
        products = NETWORKS[depth].products
        passes = [3] * len(products)
        passes[0] = 2  # images need no gradient
        flops = sum(2 * n * p.multiplications for n, p in zip(passes, products, strict=True))
        assert flops == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("depth", "design", "images_per_sec"),
    [
        (50, "eager", 8_110),
        (152, "eager", 3_650),
        (50, "fused", 10_130),
        (152, "fused", 4_560),
        (50, "folded", 11_000),
        (152, "folded", 4_890),
    ],
)
def test_the_roofline_of_a_h200(depth, design, images_per_sec):
    assert roofline(NETWORKS[depth], design, 256, *H200) == pytest.approx(images_per_sec, rel=2e-3)


def test_the_roofline_is_bound_by_the_peak_where_memory_is_free():
    assert roofline(NETWORKS[50], "eager", 256, 1e30, 790e12) == pytest.approx(32_500, rel=2e-3)
