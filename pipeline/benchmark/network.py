"""Bytes and operations of a ResNet's training step: its norm layers, its traffic, its roofline."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.norm import BatchNormAct
from pipeline.model.resnet import build_network

Kind = Literal["plain", "add", "projection"]
Design = Literal["eager", "fused", "folded"]

_CLASSES = 1000
_SEEN = 2  # images in the pass that finds the shapes: training takes more than one value a channel


@dataclass(frozen=True)
class NormCase:
    """One shape of BN (+ add) + ReLU: activations (N, channels, side, side).

    `kind` is what is added before the ReLU: nothing, another activation, or one that goes through
    a norm of its own first. `forked`: two gradients come back, one for each branch of the block
    that follows.
    """

    side: int
    channels: int
    kind: Kind
    forked: bool

    def __str__(self) -> str:
        words = [f"{self.side}x{self.side}x{self.channels}", self.kind]
        return " ".join(words + (["forked"] if self.forked else []))

    @property
    def elements(self) -> int:
        """Elements per image of the activation."""
        return self.side**2 * self.channels

    @property
    def outputs(self) -> int:
        """Elements per image that come out of a norm: a projection's is a second one."""
        return self.elements * (2 if self.kind == "projection" else 1)


@dataclass(frozen=True)
class Product:
    """A convolution, or the linear layer: elements in and out per image, and its weights."""

    inputs: int
    outputs: int
    weights: int
    multiplications: int
    """Per image, in one of its three passes: forward, gradient of the input, of the weights."""


@dataclass(frozen=True)
class Network:
    """The facts of a network that determine the bytes and the arithmetic of its step."""

    norms: Mapping[NormCase, int]
    """The number of layers of each case."""
    products: tuple[Product, ...]
    """The products in the order of the forward pass."""
    pixels: int
    """Elements of an image."""
    pooled: tuple[int, int]
    """Elements per image in and out of the max pooling."""


class Call(NamedTuple):
    """A layer, what it was called with, and what it returned."""

    layer: nn.Module
    args: tuple[Any, ...]
    named: dict[str, Any]
    y: Tensor


def calls(model: nn.Module, size: int) -> list[Call]:
    """All layer calls in a forward pass of `model` on the meta device, in the order in which they
    return; it sees two images of `size` pixels a side."""
    found: list[Call] = []
    hooks = [
        layer.register_forward_hook(lambda *call: found.append(Call(*call)), with_kwargs=True)
        for layer in model.modules()
    ]
    with torch.no_grad():
        model(torch.empty(_SEEN, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return found


def network(depth: int, size: int) -> Network:
    """The ResNet-`depth` at images of `size` pixels a side, taken from its own forward pass.

    The output of the last block is used once: one gradient comes back to it.
    """
    with torch.device("meta"):
        seen = calls(build_network(ModelConfig(depth=depth), _CLASSES), size)
    norms: list[NormCase] = []
    products: list[Product] = []
    pooled: list[tuple[int, int]] = []
    # Computed together with the norm they are added to.
    of_residuals = {
        call.args[2] for call in seen if isinstance(call.layer, BatchNormAct) and call.args[2:]
    }
    for layer, args, named, y in seen:
        if isinstance(layer, BatchNormAct) and layer not in of_residuals:
            x, residual, residual_norm = (*args, None, None)[:3]
            added: Kind = "add" if residual is not None else "plain"
            kind: Kind = "projection" if residual_norm is not None else added
            norms.append(NormCase(x.shape[2], x.shape[1], kind, named.get("fork", False)))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            inputs, outputs, weight = args[0].numel() // _SEEN, y.numel() // _SEEN, layer.weight
            work = outputs * weight[0].numel()
            products.append(Product(inputs, outputs, weight.numel(), work))
        elif isinstance(layer, nn.MaxPool2d):
            pooled.append((args[0].numel() // _SEEN, y.numel() // _SEEN))
    norms[-1] = dataclasses.replace(norms[-1], forked=False)
    return Network(Counter(norms), tuple(products), 3 * size * size, pooled[0])


def kernel_bytes(case: NormCase, images: int, element_bytes: int) -> dict[str, float]:
    """Bytes that each of our kernels must read and write once, including a bit per element of mask.
    Merging the chunks' sums moves less than a thousandth and is left out."""
    plain, projection = case.kind == "plain", case.kind == "projection"
    mask = 0.0 if plain else 1 / 8 / element_bytes
    passes = {
        "statistics": 2 if projection else 1,
        "normalize": (2 if plain else 3) + mask,  # x, (z,) y
        # dy, x, (z,) and where something is added or forked, what passed the ReLU goes out
        "gradient_sums": 2 + projection + 2 * case.forked + (not plain and not case.forked) + mask,
        "input_gradients": 5 if projection else 3,
    }
    return {name: n * case.elements * images * element_bytes for name, n in passes.items()}


def norm_bytes(
    design: Design, case: NormCase, images: int, element_bytes: int
) -> tuple[float, float]:
    """Bytes of the forward pass and of the backward pass of a norm layer, ReLU and add included.

    "eager": PyTorch's operators one after the other, in place where the layer does that. "fused":
    one layer, its mask kept as bits where something is added; a projection's norm and the sum of
    two gradients are separate. "folded": our kernels, which take in those two as well.
    """
    if design == "folded":
        found = kernel_bytes(case, images, element_bytes)
        forward = found["statistics"] + found["normalize"]
        return forward, found["gradient_sums"] + found["input_gradients"]
    added = case.kind != "plain"
    mask = 1 / 8 / element_bytes if added else 0.0
    # Eager: norm 3, add 3, ReLU 2; back, ReLU 3, norm 5.
    eager = (5.0 + 3 * added, 8.0)
    passes = (3 + added + mask, 5 + added + mask) if design == "fused" else eager
    # Autograd adds up two gradients: two reads and a write. Another norm: 3 and 5.
    apart = 3 * (case.kind == "projection"), 3 * case.forked + 5 * (case.kind == "projection")
    unit = case.elements * images * element_bytes
    return (passes[0] + apart[0]) * unit, (passes[1] + apart[1]) * unit


def roofline(
    net: Network, design: Design, images: int, bytes_per_sec: float, flop_per_sec: float
) -> float:
    """Images per second of a training step in half precision whose every kernel is at its limit.

    images / sum over kernels of max(bytes / bandwidth, operations / peak). A product reads two
    and writes one of its input, output and weights in each of three passes; the first has no
    gradient of its input. The norm layers move `norm_bytes`. Besides them: pooling with its
    indices, the images' cast, and SGD with momentum on fp32 parameters, cast once a step.

    At the measured limits of one H200 (4.3 TB/s copied, 790 TFLOP/s) and 256 images of 224
    pixels: "eager" 8,110 and 3,650 img/s for ResNet-50 and -152, "fused" 10,130 and 4,560,
    "folded" 11,000 and 4,890.
    """
    seconds = sum(
        max(moved / bytes_per_sec, 2 * product.multiplications * images / flop_per_sec)
        for product, moved in _product_passes(net, images)
    )
    norms = sum(
        count * sum(norm_bytes(design, case, images, 2)) for case, count in net.norms.items()
    )
    pool_in, pool_out = net.pooled
    pool = 2 * (pool_in * 2 + pool_out * (2 + 8)) * images
    weights = sum(product.weights for product in net.products)
    update = weights * (3 * 4 + 2 * 4 + (4 + 2) + (2 + 4) + 2)
    cast = net.pixels * (4 + 2) * images
    return images / (seconds + (norms + pool + update + cast) / bytes_per_sec)


def _product_passes(net: Network, images: int) -> Iterator[tuple[Product, float]]:
    """Each product once for each of its passes, with the bytes that pass moves."""
    for number, product in enumerate(net.products):
        moved = 2.0 * ((product.inputs + product.outputs) * images + product.weights)
        for _ in range(2 if number == 0 else 3):
            yield product, moved
