"""Networks against the paper's table 1 and, of CIFAR, section 4.2, torchvision's names and
counts, and the layout contract."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.norm import BatchNormAct, ends
from pipeline.model.resnet import ResNet, Shortcut, Variant, ZeroPadding, cifar_resnet, resnet

DEPTHS = [18, 34, 50, 101, 152]
CIFAR_DEPTHS = [20, 32, 44, 56, 110, 1202]


def on_meta(depth: int, variant: Variant = "v1.5", shortcut: Shortcut | None = "B") -> nn.Module:
    with torch.device("meta"):
        return resnet(depth, 1000, variant, shortcut=shortcut)


def cifar_on_meta(depth: int, shortcut: Shortcut | None = "A") -> nn.Module:
    with torch.device("meta"):
        return cifar_resnet(depth, 10, shortcut=shortcut)


def images(count: int, size: int) -> Tensor:
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


# The counts of torchvision's models.
@pytest.mark.parametrize(
    ("depth", "count"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
@pytest.mark.parametrize("variant", ["v1", "v1.5"])
def test_parameter_count(depth: int, count: int, variant: Variant) -> None:
    assert sum(p.numel() for p in on_meta(depth, variant).parameters()) == count


# Counted by hand: a projection is a convolution and two numbers per channel; option A's 18 and 34
# lack three of them (172,032 + 1,792), and so do the plain networks.
@pytest.mark.parametrize(
    ("depth", "shortcut", "count"),
    [
        (18, "A", 11_689_512 - 173_824),
        (34, "A", 21_797_672 - 173_824),
        (18, None, 11_689_512 - 173_824),
        (34, None, 21_797_672 - 173_824),
        # C: 3, 3, 5 and 2 more of 64, 128, 256 and 512 channels.
        (34, "C", 21_797_672 + 3 * 64 * 66 + 3 * 128 * 130 + 5 * 256 * 258 + 2 * 512 * 514),
    ],
)
def test_parameter_count_of_other_shortcuts(
    depth: int, shortcut: Shortcut | None, count: int
) -> None:
    assert sum(p.numel() for p in on_meta(depth, "v1", shortcut).parameters()) == count


# Table 6 of the paper, and the sum over layers for 6n + 2 of them.
@pytest.mark.parametrize(
    ("depth", "paper"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)],
)
def test_parameter_count_of_cifar_networks_is_the_papers(depth: int, paper: float) -> None:
    n = (depth - 2) // 6
    stages = 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    count = sum(p.numel() for p in cifar_on_meta(depth).parameters())
    assert count == 9 * (3 * 16 + stages) + norms + 64 * 10 + 10
    assert round(count / 1e6, 2 if paper < 1 else 1) == paper


# The paper's table 1, rounded to 0.1e9, and what our networks come to exactly. The paper counts 18
# and 34 with option A, and gives 3.6e9 for the plain 34 too; each of B's three projections has
# 6,422,528.
@pytest.mark.parametrize(
    ("depth", "variant", "shortcut", "paper", "exact"),
    [
        (18, "v1", "A", 1.8e9, 1_794_805_760),
        (34, "v1", "A", 3.6e9, 3_644_493_824),
        (34, "v1", None, 3.6e9, 3_644_493_824),
        (18, "v1", "B", 1.8e9, 1_814_073_344),
        (34, "v1", "B", 3.6e9, 3_663_761_408),
        (50, "v1", "B", 3.8e9, 3_857_973_248),
        (101, "v1", "B", 7.6e9, 7_570_194_432),
        (152, "v1", "B", 11.3e9, 11_282_415_616),
        # The GFLOPS that torchvision's documentation gives for its weights.
        (50, "v1.5", "B", 4.09e9, 4_089_184_256),
        (101, "v1.5", "B", 7.80e9, 7_801_405_440),
        (152, "v1.5", "B", 11.51e9, 11_513_626_624),
    ],
)
def test_multiply_adds_at_224(
    depth: int, variant: Variant, shortcut: Shortcut | None, paper: float, exact: int
) -> None:
    with FlopCounterMode(display=False) as counter:
        on_meta(depth, variant, shortcut)(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * exact
    assert exact == pytest.approx(paper, rel=0.03 if variant == "v1" else 0.001)


# Convolutions of a stage cost alike, but the first of the second and third: half.
@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("shortcut", ["A", None])
def test_multiply_adds_of_cifar_networks_at_32(depth: int, shortcut: Shortcut | None) -> None:
    n, each = (depth - 2) // 6, 9 * 16**2 * 32**2
    with FlopCounterMode(display=False) as counter:
        cifar_on_meta(depth, shortcut)(torch.empty(1, 3, 32, 32, device="meta"))
    stem, classifier = 9 * 3 * 16 * 32**2, 640
    assert counter.get_total_flops() == 2 * (stem + (6 * n - 1) * each + classifier)


@pytest.mark.parametrize(("depth", "shortcut"), [(18, "B"), (50, "B"), (18, "A")])
def test_a_seed_gives_the_weights_it_always_gave(depth: int, shortcut: Shortcut) -> None:
    torch.manual_seed(7)
    model = resnet(depth, 10, shortcut=shortcut)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    torch.manual_seed(7)
    for layer in layers:  # PyTorch's own draws, layer by layer, come before ours
        if isinstance(layer, nn.Linear):
            nn.Linear(layer.in_features, layer.out_features)
        else:
            nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False)
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            wanted = torch.empty(weight.shape)
            nn.init.kaiming_normal_(wanted, mode="fan_out", nonlinearity="relu")
            assert torch.equal(weight, wanted), name


def shapes_of(model: nn.Module, side: int) -> dict[str, tuple[int, ...]]:
    """The output of each child of `model` for two images, and of the whole under ""."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, child in [*model.named_children(), ("", model)]:
        child.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(ends(out)[0].shape)})
        )
    model(torch.empty(2, 3, side, side, device="meta"))
    return shapes


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("variant", ["v1", "v1.5"])
def test_shapes_of_every_stage(depth: int, variant: Variant) -> None:
    wide = 1 if depth < 50 else 4
    assert shapes_of(on_meta(depth, variant), 224) == {
        "conv1": (2, 64, 112, 112),
        "bn1": (2, 64, 112, 112),
        "maxpool": (2, 64, 56, 56),
        "layer1": (2, 64 * wide, 56, 56),
        "layer2": (2, 128 * wide, 28, 28),
        "layer3": (2, 256 * wide, 14, 14),
        "layer4": (2, 512 * wide, 7, 7),
        "fc": (2, 1000),
        "": (2, 1000),
    }


def test_shapes_of_every_stage_of_a_cifar_network() -> None:
    assert shapes_of(cifar_on_meta(20), 32) == {
        "conv1": (2, 16, 32, 32),
        "bn1": (2, 16, 32, 32),
        "layer1": (2, 16, 32, 32),
        "layer2": (2, 32, 16, 16),
        "layer3": (2, 64, 8, 8),
        "fc": (2, 10),
        "": (2, 10),
    }


@pytest.mark.parametrize("depth", DEPTHS + CIFAR_DEPTHS)
def test_depth_is_the_number_of_weight_layers_on_the_longest_path(depth: int) -> None:
    model = on_meta(depth) if depth in DEPTHS else cifar_on_meta(depth)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
    ]
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("variant", "strides"), [("v1", ((2, 2), (1, 1))), ("v1.5", ((1, 1), (2, 2)))]
)
def test_variant_says_which_convolution_has_the_stride(
    variant: Variant, strides: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    block = on_meta(50, variant).get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == strides
    assert block.downsample[0].stride == (2, 2)


def test_names_are_torchvisions() -> None:
    names = [name for name, _ in on_meta(50).named_parameters()]
    assert names[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"} <= set(names)
    assert {"layer3.5.bn3.weight", "fc.weight", "fc.bias"} <= set(names)
    assert len(names) == 161
    assert not any("layer1.1.downsample" in name for name in names)


def test_unknown_depth_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"depth=20 .*18, 34, 50, 101, 152"):
        resnet(20, 10)
    with pytest.raises(ValueError, match=r"depth=50 does not exist as a plain .* do: 18, 34$"):
        resnet(50, 10, shortcut=None)


@pytest.mark.parametrize("depth", [2, 7, 21, -4])
def test_unknown_depth_of_a_cifar_network_says_which_exist(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth} does not .* 6n \+ 2: 8, 14, 20, "):
        cifar_resnet(depth, 10)


def goes_forward_and_backward(model: ResNet, side: int) -> None:
    """Gradients come channels-last, which the smallest sides show as well as any."""
    logits = model(images(2, side))
    assert logits.shape == (2, 10) and logits.isfinite().all()
    logits.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.ndim < 4 or p.grad.permute(0, 2, 3, 1).is_contiguous(), name
    with torch.no_grad():
        assert model.eval()(images(1, side + 1)).shape == (1, 10)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
def test_every_depth_and_shortcut_goes_forward_and_backward(
    depth: int, shortcut: Shortcut | None
) -> None:
    if shortcut is None and depth > 34:
        return  # the paper has none
    torch.manual_seed(0)
    goes_forward_and_backward(resnet(depth, 10, shortcut=shortcut), 32)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
def test_every_depth_and_shortcut_of_cifar_goes_forward_and_backward(
    depth: int, shortcut: Shortcut | None
) -> None:
    model = cifar_resnet(depth, 10, shortcut=shortcut)
    goes_forward_and_backward(model, 8)
    modules = list(model.modules())
    assert sum(isinstance(m, ZeroPadding) for m in modules) == (2 if shortcut == "A" else 0)
    projections = sum(isinstance(m, BatchNormAct) and not m.relu for m in modules)
    assert projections == {"A": 0, "B": 2, "C": (depth - 2) // 2, None: 0}[shortcut]


def test_1202_layers_go_forward_and_backward() -> None:
    goes_forward_and_backward(cifar_resnet(1202, 10), 8)


@pytest.mark.parametrize("depth", [18, 50])
def test_every_norm_is_our_layer_and_only_shortcuts_lack_relu(depth: int) -> None:
    for name, module in on_meta(depth).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(module, BatchNormAct), name
            assert module.relu == ("downsample" not in name), name
        assert not isinstance(module, nn.ReLU), name


def test_convolutions_start_as_he_initialisation_says() -> None:
    torch.manual_seed(0)
    model = resnet(18, 1000)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not model.fc.bias.any()


@pytest.mark.parametrize(("depth", "last", "blocks"), [(18, "bn2", 8), (50, "bn3", 16)])
def test_zero_init_makes_every_block_the_relu_of_its_shortcut(
    depth: int, last: str, blocks: int
) -> None:
    model = resnet(depth, 10, zero_init_last_norm=True)
    zero = [name for name, p in model.named_parameters() if "bn" in name and not p.any()]
    scales = [name for name in zero if name.endswith("weight")]
    assert len(scales) == blocks and all(f".{last}." in name for name in scales)
    first = model.layer1[0]
    x = torch.rand(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    shortcut = x if first.downsample is None else first.downsample(x)
    assert torch.equal(first(x), shortcut.relu())
    assert all(m.weight.all() for m in resnet(depth, 10).modules() if isinstance(m, BatchNormAct))


@pytest.mark.parametrize(("depth", "shortcut"), [(18, "B"), (18, "A"), (18, None), (50, "B")])
@pytest.mark.parametrize("amp", [False, True])
def test_every_activation_weight_and_gradient_is_channels_last(
    depth: int, shortcut: Shortcut | None, amp: bool
) -> None:
    model = resnet(depth, 10, shortcut=shortcut)
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
        loss = model(images(2, 64)).float().square().mean()
    loss.backward()

    # All but the model itself, fc, and the containers of projections, whose parts are called.
    called = [
        name
        for name, module in model.named_modules()
        if not (name.endswith("downsample") and isinstance(module, nn.Sequential))
    ]
    modules = len(called) - 2
    assert seen == {"forward": modules, "backward": modules}
    for name, p in model.named_parameters():
        if p.ndim == 4:
            # The NHWC view is what travels between ranks, 1x1 weights included.
            assert p.permute(0, 2, 3, 1).is_contiguous(), name
            assert p.grad.permute(0, 2, 3, 1).is_contiguous(), name
            assert p.shape[2:] == (1, 1) or not p.grad.is_contiguous(), name


def test_weights_stay_channels_last_through_load_and_dtype_change() -> None:
    model = resnet(50, 10)
    row_major = {name: value.contiguous() for name, value in resnet(50, 10).state_dict().items()}
    model.load_state_dict(row_major)
    weights = [p for p in model.double().parameters() if p.ndim == 4]
    assert len(weights) == 53
    assert all(p.permute(0, 2, 3, 1).is_contiguous() for p in weights)


@pytest.mark.parametrize(
    ("build", "side", "lr", "steps"),
    [
        (lambda: resnet(18, 10), 64, 0.05, 6),
        (lambda: cifar_resnet(8, 10), 32, 0.1, 30),
        (lambda: cifar_resnet(8, 10, shortcut=None), 32, 0.1, 30),
    ],
)
def test_a_network_learns(build: Callable[[], ResNet], side: int, lr: float, steps: int) -> None:
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images(8, side)), torch.arange(8) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_same_seed_gives_the_same_weights() -> None:
    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(resnet(18, 10).parameters())

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not torch.equal(draw(1)[0], draw(2)[0])
