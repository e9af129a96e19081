"""Settings of the network, the optimizer and the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.setting import check_limits, require, setting, shown

Family = Literal["imagenet", "cifar"]
Shortcut = Literal["A", "B", "C"]
Variant = Literal["v1", "v1.5"]
Weights = Literal["raw", "ema"]
"""Which weights of a checkpoint: those that were trained, or their moving average."""

CURVES = ("cosine", "polynomial")
"""The values of schedule.rule with which the rate falls over the whole run, so that the run's
length is part of what is trained."""
LENGTH = ("schedule.epochs", "schedule.steps")
"""The settings that are the run's length."""


def has_bottlenecks(family: Family, depth: int) -> bool:
    """Whether blocks are of three layers, for which alone v1 and v1.5 differ."""
    return family == "imagenet" and depth >= 50


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    family: Family = setting("imagenet", "identity", ("benchmark",), of_network=True)
    """imagenet: 7x7 stem, four stages (table 1 of the paper); cifar: 3x3 stem, three stages of
    16, 32 and 64 channels (section 4.2)."""
    residual: bool = setting(True, "identity", ("benchmark",), of_network=True)
    """Whether blocks have shortcuts; false: the paper's plain networks."""
    depth: int = setting(50, "identity", ("benchmark",), of_network=True)
    """Layers: 18, 34, 50, 101 or 152 (plain: 18 or 34); cifar: 6n+2, such as 20, 32, 44, 56, 110
    or 1202."""
    shortcut: Shortcut | None = setting(None, "identity", ("benchmark",), of_network=True)
    """A: zero-padding, no parameters; B: projection where the shape changes; C: projection
    everywhere; null: B, for cifar A."""
    variant: Variant = setting("v1.5", "identity", ("benchmark",), of_network=True)
    """Where a bottleneck halves the resolution: v1 (the paper): first 1x1; v1.5: the 3x3."""
    zero_init_last_norm: bool = setting(True, "identity", ("benchmark",))
    """Start each block's last BN at scale 0, so that a block begins as the identity (Goyal et al.
    2017); the paper starts at 1."""
    norm: Literal["auto", "reference", "triton", "apex"] = setting(
        "auto", "execution", ("evaluate", "predict", "benchmark", "doctor")
    )
    """What computes BN + addition + ReLU: PyTorch's operators (reference), our Triton kernels, or
    NVIDIA's apex (fp16); auto: Triton on a GPU, else the reference."""
    compile: bool = setting(False, "execution", ("benchmark",))
    """Run the model through torch.compile."""
    graphs: bool = setting(False, "execution", ("benchmark",))
    """Train each stage of the network as a CUDA graph, which the host launches at once."""
    freeze: tuple[str, ...] = setting((), "identity", later=True)
    """Parts that keep the weights they begin with, for use with --init: stem, the numbers of
    stages, as in [stem,1,2], or [backbone] for all but the last layer; []: none. Their norm layers
    use their running statistics and leave them as they are."""

    def __post_init__(self) -> None:
        self._check_depth()
        require(
            self.residual or self.shortcut is None,
            f"model.shortcut={self.shortcut} is for residual networks and model.residual is false; "
            "leave it null",
        )
        require(
            self.residual or not self.zero_init_last_norm,
            "model.zero_init_last_norm=true would make every block of a plain network give zeros; "
            "set it to false with model.residual=false",
        )

        self._check_graphs()
        self._check_freeze()

    def _check_graphs(self) -> None:
        require(
            not (self.graphs and self.compile),
            "model.graphs=true and model.compile=true are two ways to launch less; set one of them "
            "to false",
        )
        require(
            not self.graphs or self.norm != "apex",
            "model.graphs=true cannot hold the kernels of model.norm=apex; set model.norm=auto, or "
            "model.graphs=false",
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What `freeze` can name of this network, images first, but for `backbone`."""
        return ("stem", *(str(number) for number in range(1, 4 if self.family == "cifar" else 5)))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Those of `parts` that `freeze` means."""
        return self.parts if "backbone" in self.freeze else self.freeze

    def _check_freeze(self) -> None:
        there = ", ".join(self.parts)
        for name in self.freeze:
            require(
                name in (*self.parts, "backbone"),
                f"model.freeze={shown(self.freeze)}: a network of model.family={self.family} has "
                f"no part {name}; there are {there}, and backbone for all of these",
            )
        require(
            len(set(self.freeze)) == len(self.freeze)
            and ("backbone" not in self.freeze or len(self.freeze) == 1),
            f"model.freeze={shown(self.freeze)} must name each part once, or backbone alone",
        )
        require(
            not self.freeze or self.norm != "apex",
            f"model.freeze={shown(self.freeze)} cannot be trained by model.norm=apex, which has no "
            "backward pass through running statistics; set model.norm=auto",
        )

    def _check_depth(self) -> None:
        if self.family == "cifar":
            below = (self.depth - 2) // 6 * 6 + 2
            near = f"{below} and {below + 6}" if below >= 8 else "8"
            require(
                self.depth >= 8 and (self.depth - 2) % 6 == 0,
                f"model.depth={self.depth} does not exist for model.family=cifar, whose depths are "
                f"6n+2; the nearest: {near} (the paper has 20, 32, 44, 56, 110 and 1202)",
            )
            return
        kind = "residual" if self.residual else "plain"
        depths = (18, 34, 50, 101, 152) if self.residual else (18, 34)
        require(
            self.depth in depths,
            f"model.depth={self.depth} does not exist; of {kind} networks there are "
            f"{', '.join(map(str, depths))}",
        )


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, the loss and the arithmetic."""

    base_lr: float = setting(0.1, "identity", asked=1, limits="(0, inf)")
    """Learning rate per global batch of 256; the peak in force is base_lr * global batch / 256."""
    head_lr: float | None = setting(None, "identity", limits="(0, inf)", later=True)
    """The same for the last layer alone, whose rate rises and falls with the others': for
    fine-tuning, where it begins from nothing; null: base_lr."""
    momentum: float = setting(0.9, "identity", in_table=True, limits="[0, 1)")
    """Momentum, in PyTorch's convention; for lamb its first beta."""
    weight_decay: float = setting(1e-4, "identity", in_table=True, limits="[0, inf)")
    """L2 penalty; for lamb what is added to the step instead."""
    decay_norm_and_bias: bool = setting(False, "identity")
    """Decay BN scales, BN shifts and biases too, as the paper does."""
    optimizer: Literal["sgd", "lars", "lamb"] = setting("sgd", "identity", later=True)
    """sgd: with momentum, as in the paper; lars, lamb: for large batches, each layer's step scaled
    by the norm of its weights (You et al. 2017 and 2020), where there is weight decay."""
    nesterov: bool = setting(False, "identity", later=True)
    """sgd, lars: Nesterov's momentum in place of the plain one."""
    trust_coefficient: float = setting(0.001, "identity", limits="(0, inf)", later=True)
    """lars: how far a layer may step, as a share of the norm of its weights, at a learning rate of
    1."""
    beta2: float = setting(0.999, "identity", limits="(0, 1)", later=True)
    """lamb: share of the second moment kept at each step."""
    clip_norm: float | None = setting(None, "identity", limits="(0, inf)", later=True)
    """The most that the L2 norm of all gradients together may be in an update; larger ones are
    scaled down to it. null: no limit."""
    label_smoothing: float = setting(0.0, "identity", in_table=True, limits="[0, 1)")
    """Probability mass spread evenly over all classes."""
    loss: Literal["cross_entropy", "bce"] = setting("cross_entropy", "identity", later=True)
    """cross_entropy, or bce: binary cross-entropy of each class, its mean over classes and images
    (Wightman et al. 2021, "ResNet strikes back"). Validation always has the cross-entropy."""
    class_weights: Literal["none", "balanced"] = setting("none", "identity", later=True)
    """balanced: an image counts in the training loss by n / (classes * images of its class), of n
    training images, which is 1 in the mean; the sum is divided by the number of images."""
    amp: Literal["off", "tf32", "bf16", "fp16"] = setting(
        "bf16", "identity", ("evaluate", "predict", "benchmark", "doctor"), in_table=True
    )
    """Arithmetic of the forward and backward pass: fp32 (off), fp32 with TF32 products on a GPU
    (tf32), bf16 or fp16; fp16 scales the loss."""
    gradient_compression: Literal["none", "fp16", "bf16"] = setting(
        "none", "identity", ("benchmark all",)
    )
    """What gradients travel as between ranks; none: fp32; bf16: over torch.distributed only."""
    ema_decay: float | None = setting(None, "identity", in_table=True, limits="[0, 1)", later=True)
    """Share that an exponential moving average (EMA) of the weights keeps at each update of it,
    such as 0.9999; it is validated beside the weights, and best.pt is chosen by it. The share is
    that of one update, not scaled by the batch or the run's length as torchvision's recipes do;
    null: no average."""
    ema_every_steps: int = setting(1, "identity", limits="[1, inf)", later=True)
    """Steps from one update of the average to the next."""
    ema_warmup: bool = setting(False, "identity", later=True)
    """Let the share rise with the number n of updates, as 1 - n**(-2/3), up to ema_decay."""

    def __post_init__(self) -> None:
        check_limits(self, "optim.")
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        kind = self.optimizer
        require(
            not self.nesterov or kind != "lamb",
            "optim.nesterov=true is not for optim.optimizer=lamb; set it to false, or "
            "optim.optimizer to sgd or lars",
        )
        require(
            not self.nesterov or self.momentum > 0,
            f"optim.nesterov=true needs momentum and optim.momentum is {self.momentum}; set "
            "optim.momentum above 0, or optim.nesterov=false",
        )
        for name, owner in (("trust_coefficient", "lars"), ("beta2", "lamb")):
            value, default = getattr(self, name), getattr(OptimConfig, name)
            require(
                value == default or kind == owner,
                f"optim.{name}={value} has an effect with optim.optimizer={owner} alone and that "
                f"is {kind}; leave it at {default}, or set optim.optimizer={owner}",
            )
        require(
            kind == "sgd" or self.weight_decay > 0,
            f"optim.optimizer={kind} scales the steps of weights that decay, and optim.weight_decay"
            f" is {self.weight_decay}; set it above 0, or optim.optimizer=sgd",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """How long to train, and when the learning rate falls."""

    epochs: float | None = setting(90.0, "recipe", asked=3, limits="(0, inf)")
    """Length of the run in passes over the training images; null: steps has it."""
    steps: int | None = setting(None, "recipe", asked=4, limits="[1, inf)")
    """Length of the run in optimizer steps, with epochs=null (the paper: 600,000; CIFAR-10:
    64,000); null: epochs has it."""
    warmup_epochs: float = setting(5.0, "identity", in_table=True, limits="[0, inf)")
    """Length of the linear rise to the peak learning rate; 0: none."""
    warmup_start_factor: float = setting(0.1, "identity", limits="(0, 1]")
    """Share of the peak learning rate at the first step of the warm-up."""
    warmup_until_error: float | None = setting(None, "identity", limits="(0, 1)")
    """A constant warm-up at warmup_start_factor of the peak that ends when the training error of a
    window of 100 steps falls below this fraction (0.8 for the paper's 110 layers on CIFAR-10);
    null: the warm-up is warmup_epochs."""
    rule: Literal["steps", "plateau", "cosine", "polynomial"] = setting(
        "steps", "identity", in_table=True
    )
    """Drop by 10 at given epochs (steps), or when the validation error stops falling (plateau, the
    paper); or fall from the end of the warm-up to the end of the run, as half a cosine or as a
    power of what is left of it, so that the length cannot change once the run has begun."""
    end_factor: float = setting(0.0, "identity", limits="[0, 1)", later=True)
    """cosine, polynomial: share of the peak learning rate at the end of the run."""
    power: float = setting(1.0, "identity", limits="(0, inf)", later=True)
    """polynomial: the exponent; 1: a straight line."""
    drop_epochs: tuple[float, ...] | None = setting((30.0, 60.0, 80.0), "identity")
    """steps: where the learning rate is divided by 10; null: drop_steps has it."""
    drop_steps: tuple[int, ...] | None = setting(None, "identity")
    """steps: the same in optimizer steps, with drop_epochs=null (CIFAR-10: 32,000 and 48,000);
    null: drop_epochs has it."""
    patience: int = setting(5, "identity", limits="[1, inf)")
    """plateau: validations without improvement before a drop."""
    min_improvement: float = setting(0.001, "identity", limits="[0, inf]")
    """plateau: least fall of the top-1 error (a fraction) that counts as improvement."""
    max_drops: int = setting(3, "identity", limits="[0, inf)")
    """plateau: the most drops."""

    def __post_init__(self) -> None:
        check_limits(self, "schedule.")
        require(
            (self.epochs is None) != (self.steps is None),
            f"the length of a run is either schedule.epochs={shown(self.epochs)} or schedule.steps"
            f"={shown(self.steps)}; set one of them and the other to null",
        )
        self._check_warmup()
        self._check_drops()

    def _check_warmup(self) -> None:
        # How many epochs schedule.steps are is known once the images are counted.
        require(
            self.epochs is None or self.warmup_epochs < self.epochs,
            f"schedule.warmup_epochs={self.warmup_epochs} must be less than "
            f"schedule.epochs={self.epochs}; shorten the warm-up (0: none), or lengthen the run",
        )
        until = self.warmup_until_error
        require(
            until is None or self.warmup_epochs == 0,
            f"schedule.warmup_until_error={until} and schedule.warmup_epochs={self.warmup_epochs} "
            "are two warm-ups and a run has one; set schedule.warmup_epochs=0, or the other to "
            "null",
        )
        require(
            until is None or self.warmup_start_factor < 1,
            f"schedule.warmup_until_error={until} has no effect at schedule.warmup_start_factor="
            f"{self.warmup_start_factor}; set the factor below 1",
        )

    def _check_drops(self) -> None:
        require(
            (self.drop_epochs is None) != (self.drop_steps is None),
            "the drops of the learning rate are set either in schedule.drop_epochs="
            f"{shown(self.drop_epochs)} or in schedule.drop_steps={shown(self.drop_steps)}; set "
            "one of them ([] for no drops) and the other to null",
        )
        require(
            self.drop_steps is None or self.rule == "steps",
            f"schedule.drop_steps={shown(self.drop_steps)} has no effect with schedule.rule="
            f"{self.rule}; set it to null and leave schedule.drop_epochs as it is, or set "
            "schedule.rule=steps",
        )
        for name in ("drop_epochs", "drop_steps"):
            drops = getattr(self, name) or ()
            rising = all(a < b for a, b in zip(drops, drops[1:], strict=False))
            require(
                rising and all(drop > 0 for drop in drops),
                f"schedule.{name}={shown(drops)} must be positive and rising",
            )
