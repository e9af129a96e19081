"""Networks against the paper's table 1 and, of CIFAR, section 4.2; torchvision's names and counts;
shortcuts by their values; initial weights; and the layout contract."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ModelConfig
from pipeline.config.training import Family, Shortcut, Variant
from pipeline.model.norm import BatchNormAct, ends
from pipeline.model.resnet import (
    BasicBlock,
    BlockStyle,
    Bottleneck,
    ResNet,
    ZeroPadding,
    build_network,
)

DEPTHS = [18, 34, 50, 101, 152]


def built(
    depth: int, shortcut: Shortcut | None = None, variant: Variant = "v1.5", *,
    family: Family = "imagenet", plain: bool = False, zero_init: bool = False, classes: int = 10,
) -> ResNet:  # fmt: skip
    """A network; without `shortcut` its family's own, or none if it is `plain`."""
    return build_network(
        ModelConfig(family, not plain, depth, shortcut, variant, zero_init), classes
    )


def on_meta(*args: object, **settings: object) -> ResNet:
    """What `built` makes, without memory."""
    with torch.device("meta"):
        return built(*args, **settings)  # type: ignore[arg-type]


def images(count: int, size: int) -> Tensor:
    return channels_last(count, 3, size, size)


def channels_last(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Sizes.

# Parameters are torchvision's or counted by hand: a projection is a convolution and two numbers per
# channel; option A's 18 and 34, and plain ones, are without three of them (172,032 + 1,792), and C
# has 3, 3, 5 and 2 more of 64, 128, 256 and 512 channels. Multiply-adds at 224 are what networks
# come to exactly; the paper's table 1 rounds to 0.1e9: it counts 18 and 34 with option A,
# and gives 3.6e9 for the plain 34 too. Those of v1.5 are the GFLOPS of torchvision's documentation.
SIZES = [
    ({"depth": 18, "shortcut": "A", "variant": "v1"}, 11_689_512 - 173_824, 1.8e9, 1_794_805_760),
    ({"depth": 18, "variant": "v1"}, 11_689_512, 1.8e9, 1_814_073_344),
    ({"depth": 18, "variant": "v1", "plain": True}, 11_689_512 - 173_824, 1.8e9, 1_794_805_760),
    ({"depth": 34, "shortcut": "A", "variant": "v1"}, 21_797_672 - 173_824, 3.6e9, 3_644_493_824),
    ({"depth": 34, "variant": "v1"}, 21_797_672, 3.6e9, 3_663_761_408),
    ({"depth": 34, "variant": "v1", "plain": True}, 21_797_672 - 173_824, 3.6e9, 3_644_493_824),
    ({"depth": 34, "shortcut": "C", "variant": "v1"},
     21_797_672 + 3 * 64 * 66 + 3 * 128 * 130 + 5 * 256 * 258 + 2 * 512 * 514, None, None),
    ({"depth": 50, "variant": "v1"}, 25_557_032, 3.8e9, 3_857_973_248),
    ({"depth": 101, "variant": "v1"}, 44_549_160, 7.6e9, 7_570_194_432),
    ({"depth": 152, "variant": "v1"}, 60_192_808, 11.3e9, 11_282_415_616),
    ({"depth": 50}, 25_557_032, 4.09e9, 4_089_184_256),
    ({"depth": 101}, 44_549_160, 7.80e9, 7_801_405_440),
    ({"depth": 152}, 60_192_808, 11.51e9, 11_513_626_624),
]  # fmt: skip


@pytest.mark.parametrize(("network", "count", "paper", "exact"), SIZES)
def test_parameters_and_multiply_adds_at_224(network, count, paper, exact) -> None:
    model = on_meta(**network, classes=1000)
    assert parameters_of(model) == count
    if exact is not None:
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224, device="meta"))
        assert counter.get_total_flops() == 2 * exact
        assert exact == pytest.approx(paper, rel=0.001 if "variant" not in network else 0.03)


# Table 6 of the paper, and the sum over layers for 6n + 2 of them. Convolutions of a stage cost
# alike at 32 pixels, but the first of the second and third: half.
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("depth", "paper"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)],
)
def test_parameters_and_multiply_adds_of_cifar_networks(
    depth: int, paper: float, plain: bool
) -> None:
    n, each = (depth - 2) // 6, 9 * 16**2 * 32**2
    model = on_meta(depth, family="cifar", plain=plain)
    stages = 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert depth_of(model) == depth
    assert parameters_of(model) == 9 * (3 * 16 + stages) + norms + 64 * 10 + 10
    assert round(parameters_of(model) / 1e6, 2 if paper < 1 else 1) == paper
    if depth <= 56:  # the counter takes a minute for 1202
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 32, 32, device="meta"))
        assert counter.get_total_flops() == 2 * (9 * 3 * 16 * 32**2 + (6 * n - 1) * each + 640)


def shapes_of(model: nn.Module, side: int) -> list[tuple[int, ...]]:
    """The output of each child of `model` for two images."""
    shapes: list[tuple[int, ...]] = []
    for child in model.children():
        child.register_forward_hook(lambda _, __, out: shapes.append(tuple(ends(out)[0].shape)))
    model(torch.empty(2, 3, side, side, device="meta"))
    return shapes


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("variant", ["v1", "v1.5"])
def test_shapes_of_every_stage(depth: int, variant: Variant) -> None:
    wide = 1 if depth < 50 else 4
    stages = [(2, (64 << n) * wide, 56 >> n, 56 >> n) for n in range(4)]
    stem = [(2, 64, 112, 112)] * 2 + [(2, 64, 56, 56)]
    model = on_meta(depth, variant=variant)
    assert depth_of(model) == depth
    assert shapes_of(model, 224) == [*stem, *stages, (2, 10)]


def test_shapes_of_every_stage_of_a_cifar_network() -> None:
    stages = [(2, 16 << n, 32 >> n, 32 >> n) for n in range(3)]
    assert shapes_of(on_meta(20, family="cifar"), 32) == [*stages[:1] * 2, *stages, (2, 10)]


def depth_of(model: nn.Module) -> int:
    """The weight layers on the longest path."""
    of = (name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return len([name for name in of if "downsample" not in name])


@pytest.mark.parametrize(
    ("variant", "strides"), [("v1", ((2, 2), (1, 1))), ("v1.5", ((1, 1), (2, 2)))]
)
def test_variant_says_which_convolution_has_the_stride(
    variant: Variant, strides: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    block = on_meta(50, variant=variant).get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == strides
    assert block.downsample[0].stride == (2, 2)


def test_names_are_torchvisions() -> None:
    names = [name for name, _ in on_meta(50).named_parameters()]
    assert names[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"} <= set(names)
    assert {"layer3.5.bn3.weight", "fc.weight", "fc.bias"} <= set(names)
    assert len(names) == 161
    assert not any("layer1.1.downsample" in name for name in names)


def test_features_are_what_the_classifier_averages() -> None:
    model = built(8, family="cifar").eval()
    features = model.features(images(2, 32))
    assert features.shape == (2, 64, 8, 8)
    torch.testing.assert_close(model(images(2, 32)), model.fc(features.mean((2, 3))))


# Shortcuts.


@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
def test_every_network_has_the_shortcuts_it_asks_for(depth: int, shortcut: Shortcut | None) -> None:
    model = on_meta(depth, shortcut, family="cifar", plain=shortcut is None)
    modules = list(model.modules())
    assert sum(isinstance(m, ZeroPadding) for m in modules) == (2 if shortcut == "A" else 0)
    projections = sum(isinstance(m, BatchNormAct) and not m.relu for m in modules)
    assert projections == {"A": 0, "B": 2, "C": (depth - 2) // 2, None: 0}[shortcut]


@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (1, 1)])
def test_option_a_is_strided_and_padded_with_zeros(sides: tuple[int, int]) -> None:
    x = channels_last(2, 3, *sides).requires_grad_()
    y = ZeroPadding(3, 7, 2)(x)
    wanted = np.zeros((2, 7, (sides[0] + 1) // 2, (sides[1] + 1) // 2), np.float32)
    wanted[:, :3] = x.detach().numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(y.detach().numpy(), wanted)
    # What the fused norm layers take as it is; anything else costs them a copy.
    assert y.contiguous(memory_format=torch.channels_last).data_ptr() == y.data_ptr()
    assert ZeroPadding(3, 7, 2)(x.bfloat16()).dtype == torch.bfloat16

    weights = torch.arange(1.0, y.numel() + 1).view_as(y)
    (y * weights).sum().backward()
    gradient = np.zeros(x.shape, np.float32)
    gradient[:, :, ::2, ::2] = weights.numpy()[:, :3]
    np.testing.assert_array_equal(x.grad.numpy(), gradient)
    assert x.grad.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_of_option_a_adds_the_padded_input_before_its_relu(
    block: type[BasicBlock] | type[Bottleneck],
) -> None:
    layer = block(8, 16, 2, BlockStyle("A")).eval()
    assert not layer.downsample.state_dict()  # no parameters and no names
    x = channels_last(2, 8, 6, 6)
    last = layer.bn2 if isinstance(layer, BasicBlock) else layer.bn3
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 0.25)
    y, _ = ends(layer(x))
    wanted = np.full(y.shape, 0.25, np.float32)
    wanted[:, :8] += x.numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(y.detach().numpy(), np.maximum(wanted, 0))


def test_a_plain_block_is_its_two_layers() -> None:
    layer = BasicBlock(8, 8, 1, BlockStyle(None)).eval()
    x = channels_last(2, 8, 6, 6)
    assert isinstance(layer.bn2, BatchNormAct) and layer.bn2.relu
    wanted = layer.bn2(layer.conv2(layer.bn1(layer.conv1(x))))
    assert torch.equal(layer(x), wanted)
    torch.nn.init.zeros_(layer.bn2.weight)
    assert not layer(x).any()  # nothing else gets through


@pytest.mark.parametrize("depth", [18, 50])
def test_every_norm_is_our_layer_and_only_shortcuts_are_without_relu(depth: int) -> None:
    for name, module in on_meta(depth).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(module, BatchNormAct), name
            assert module.relu == ("downsample" not in name), name
        assert not isinstance(module, nn.ReLU), name


# Initial weights.


@pytest.mark.parametrize(("depth", "shortcut"), [(18, "B"), (50, "B"), (18, "A")])
def test_a_seed_gives_the_weights_it_always_gave(depth: int, shortcut: Shortcut) -> None:
    torch.manual_seed(7)
    model = built(depth, shortcut)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    torch.manual_seed(7)
    for layer in layers:  # PyTorch's own draws, layer by layer, come before ours
        if isinstance(layer, nn.Linear):
            nn.Linear(layer.in_features, layer.out_features)
        else:
            nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False)
    for name, value in model.named_parameters():
        wanted = torch.empty(value.shape)
        if value.ndim == 4:  # He et al.: N(0, 2 / fan_out)
            nn.init.normal_(wanted, std=(2 / (value.shape[0] * value.shape[2] ** 2)) ** 0.5)
        elif value.ndim == 2:
            nn.init.normal_(wanted, std=0.01)
        else:  # BN's scales are 1, all shifts and the bias 0
            wanted.fill_(float(name.endswith("weight")))
        torch.testing.assert_close(value.contiguous(), wanted, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize(
    ("network", "last", "blocks"),
    [
        ({"depth": 18}, "bn2", 8), ({"depth": 50}, "bn3", 16),
        ({"depth": 8, "family": "cifar"}, "bn2", 3),
    ],
)  # fmt: skip
def test_zero_init_makes_every_block_the_relu_of_its_shortcut(network, last, blocks) -> None:
    model = built(**network, zero_init=True)
    zero = [name for name, p in model.named_parameters() if "bn" in name and not p.any()]
    scales = [name for name in zero if name.endswith("weight")]
    assert len(scales) == blocks and all(f".{last}." in name for name in scales)
    first = model.layer1[0]
    x = channels_last(2, model.conv1.out_channels, 8, 8).abs()
    shortcut = x if first.downsample is None else first.downsample(x)
    assert torch.equal(ends(first(x))[0], shortcut.relu())


# Layout: channels-last all the way.


@pytest.mark.parametrize(
    ("depth", "shortcut", "family", "side", "amp"),
    [
        (18, "B", "imagenet", 64, False), (18, "A", "imagenet", 64, True),
        (18, "C", "imagenet", 64, True), (18, None, "imagenet", 64, False),
        (50, "B", "imagenet", 64, True), (50, "A", "imagenet", 64, False),
        (20, "A", "cifar", 16, True), (20, "B", "cifar", 16, False), (20, None, "cifar", 16, True),
    ],
)  # fmt: skip
def test_every_activation_weight_and_gradient_is_channels_last(
    depth: int, shortcut: Shortcut | None, family: Family, side: int, amp: bool
) -> None:
    model = built(depth, shortcut, family=family, plain=shortcut is None)
    seen = {"forward": 0, "backward": 0}

    def check(x: Tensor, name: str, way: str) -> None:
        assert x.is_contiguous(memory_format=torch.channels_last), f"{way} of {name}"
        assert not x.is_contiguous(), f"{way} of {name} is too small to tell"
        seen[way] += 1

    def hook(name: str) -> object:
        def after(_: nn.Module, __: object, out: Tensor) -> None:
            if out.ndim == 4:
                check(out, name, "forward")
                out.register_hook(lambda gradient: check(gradient, name, "backward"))

        return after

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(hook(name))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = model(images(2, side)).float().square().mean()
    loss.backward()
    assert loss.isfinite()

    # All but the model itself, fc, and the containers of projections, whose parts are called.
    called = [
        name
        for name, module in model.named_modules()
        if not (name.endswith("downsample") and isinstance(module, nn.Sequential))
    ]
    modules = len(called) - 2
    assert seen == {"forward": modules, "backward": modules}
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if p.ndim == 4:
            # The NHWC view is what travels between ranks, 1x1 weights included.
            assert p.permute(0, 2, 3, 1).is_contiguous(), name
            assert p.grad.permute(0, 2, 3, 1).is_contiguous(), name
            assert p.shape[2:] == (1, 1) or not p.grad.is_contiguous(), name


def test_1202_layers_go_forward_and_backward() -> None:
    model = built(1202, family="cifar")
    model(images(2, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weights_stay_channels_last_through_load_and_dtype_change() -> None:
    model = built(50)
    model.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    weights = [p for p in model.double().parameters() if p.ndim == 4]
    assert len(weights) == 53
    assert all(p.permute(0, 2, 3, 1).is_contiguous() for p in weights)


@pytest.mark.parametrize("plain", [False, True])
def test_a_network_learns(plain: bool) -> None:
    torch.manual_seed(0)
    model = built(8, family="cifar", plain=plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images(8, 16)), torch.arange(8) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert model.eval()(images(1, 17)).shape == (1, 10)
