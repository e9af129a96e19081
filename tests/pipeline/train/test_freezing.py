"""Frozen parts: no gradient, no momentum, no decay, nothing sent, running statistics as they are;
and fine-tuning as a whole, on any number of ranks and after any stop."""

import shutil
from pathlib import Path

import jobs
import pytest
import torch
from jobs import SABOTEUR, resumable
from one_process import config_of, train_here
from run_files import differences, metrics, newest_checkpoint
from weight_files import CIFAR_8, write_checkpoint

from pipeline.config import ConfigError, ModelConfig
from pipeline.model.norm import BatchNormAct, running_statistics
from pipeline.model.recording import BatchStatistics
from pipeline.model.resnet import ResNet, build_network
from pipeline.ranks.gradients import Alone, OrderedGradients, Summing
from pipeline.train.freezing import freeze, trained_share
from pipeline.train.optimizer import build_optimizer, lr_in_force, named_norms, norms, set_lr
from pipeline.train.rank_statistics import mean_statistics

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
FROZEN = ("stem", "1")


def network(parts: tuple[str, ...] = FROZEN, device: torch.device = CPU) -> ResNet:
    torch.manual_seed(0)
    return freeze(build_network(CIFAR_8, 5).to(device), parts)


def backward(model: ResNet, seed: int = 1) -> None:
    torch.manual_seed(seed)
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    model.train()
    model(images.to(model.fc.weight.device)).square().mean().backward()


@pytest.mark.parametrize(
    ("model", "freezes", "parts", "first"),
    [
        (CIFAR_8, ("stem",), {"conv1", "bn1"}, "layer1.0.conv1.weight"),
        (CIFAR_8, ("backbone",), {"conv1", "bn1", "layer1", "layer2", "layer3"}, "fc.weight"),
        (ModelConfig(depth=18), ("stem", "1", "2", "3"),
         {"conv1", "bn1", "layer1", "layer2", "layer3"}, "layer4.0.conv1.weight"),
        (ModelConfig(depth=18), ("backbone",),
         {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}, "fc.weight"),
        (ModelConfig(depth=18), ("2",), {"layer2"}, "conv1.weight"),
    ],
)  # fmt: skip
def test_parts_are_the_networks_own(model, freezes, parts, first):
    model = ModelConfig(**{**vars(model), "freeze": freezes})
    found = freeze(build_network(model, 5), model.frozen).train()
    frozen = {n.partition(".")[0] for n, p in found.named_parameters() if not p.requires_grad}
    assert frozen == parts
    assert next(n for n, p in found.named_parameters() if p.requires_grad) == first
    for name, layer in found.named_modules():
        if isinstance(layer, BatchNormAct):
            assert layer.training == (name.partition(".")[0] not in parts), name


@pytest.mark.parametrize(
    ("family", "freezes", "told"),
    [
        ("cifar", "[4]", "model.freeze=[4]: a network of model.family=cifar has no part 4; there "
         "are stem, 1, 2, 3, and backbone for all of these"),
        ("imagenet", "[stem,5]", "has no part 5; there are stem, 1, 2, 3, 4, and backbone"),
        ("imagenet", "[head]", "has no part head"),
        ("imagenet", "[1,1]", "model.freeze=[1,1] must name each part once, or backbone alone"),
        ("imagenet", "[stem,backbone]", "must name each part once, or backbone alone"),
        ("imagenet", "stem", "=stem must be a list of names in brackets, such as [stem,1]"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_exist_is_refused_with_those_that_do(
    family, freezes, told, small_data, tmp_path
):
    depth = 8 if family == "cifar" else 18
    with pytest.raises(ConfigError) as error:
        config_of(small_data, tmp_path, f"--model.family={family}", f"--model.depth={depth}",
                  f"--model.freeze={freezes}")  # fmt: skip
    assert told in str(error.value)


def test_apex_cannot_train_through_frozen_norm_layers():
    with pytest.raises(
        ConfigError, match=r"model.freeze=\[1\] cannot be trained by model.norm=apex"
    ):
        ModelConfig(freeze=("1",), norm="apex")


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("parts", [FROZEN, ("stem", "1", "2", "3"), ("2",)])
def test_a_step_leaves_weights_statistics_and_momentum_of_frozen_parts(parts, fixed):
    model = network(parts)
    for statistic in running_statistics(model):
        statistic.add_(torch.rand_like(statistic))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recorded = BatchStatistics(model) if fixed else None
    optimizer = build_optimizer(model, 0.1, 0.9, 0.1, decay_norm_and_bias=True)
    backward(model)
    if recorded is not None:
        recorded.apply(recorded.batch[None])
    optimizer.step()
    names = {"stem": ("conv1", "bn1")}
    frozen = tuple(n for part in parts for n in names.get(part, (f"layer{part}",)))
    for name, value in model.state_dict().items():
        kept = name.startswith(frozen) and name.partition(".")[0] in frozen
        assert torch.equal(value, before[name]) == kept, name
    for name, parameter in model.named_parameters():
        kept = name.partition(".")[0] in frozen
        assert (parameter.grad is None) == kept, name
        assert (parameter in optimizer.state) == (not kept), name


def test_frozen_norm_layers_read_their_statistics_while_others_train():
    model = network(("stem", "1", "2", "3"))
    images = torch.randn(4, 3, 16, 16)
    evaluated = model.eval()(images)
    assert torch.equal(model.train()(images), evaluated)
    assert not torch.equal(network(()).train()(images), evaluated)


def test_gradients_of_frozen_parts_are_not_sent():
    def sent(parts: tuple[str, ...]) -> int:
        model = network(parts)
        return OrderedGradients(model, Summing(2, "fixed"), 0, 1, Alone(CPU))._flat.numel

    count = sum(p.numel() for p in network().layer2.parameters())
    assert count < sent(FROZEN) < sent(())
    assert sent(("stem", "1", "2", "3")) < 1000


def test_a_stage_that_is_frozen_has_a_gradient_of_norm_0():
    model = network()
    backward(model)
    found = named_norms(model, norms(model))
    assert found["gradient_norm_stem"] == found["gradient_norm_layer1"] == 0
    assert found["gradient_norm_layer2"] > 0 and found["weight_norm_stem"] > 0


@pytest.mark.gpu
def test_a_stage_that_is_frozen_has_a_gradient_of_norm_0_on_a_gpu():
    model = network(device=torch.device("cuda", 0))
    backward(model)
    assert named_norms(model, norms(model))["gradient_norm_stem"] == 0


def test_the_log_says_how_much_trains():
    model = network(("stem", "1", "2", "3"))
    total = sum(p.numel() for p in model.parameters())
    assert trained_share(model) == f"{64 * 5 + 5} of {total:,} parameters train"


def test_statistics_that_all_ranks_have_alike_keep_their_bits():
    model = network()
    row = torch.rand(sum(one.numel() for one in running_statistics(model)))
    assert torch.equal(torch.cat(mean_statistics(row.repeat(3, 1), model)), row)
    other = torch.stack([row, row + 1, row])
    assert torch.equal(torch.cat(mean_statistics(other, model)), other.mean(0))


@pytest.mark.parametrize("parts", [(), ("stem", "1", "2", "3")])
def test_the_head_has_its_own_rate_in_the_same_shape(parts):
    model = network(parts)
    optimizer = build_optimizer(model, 0.1, 0.9, 0.01, False, head_share=10.0)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["head_weights"]["param_names"] == ["fc.weight"]
    assert groups["head_bias"]["param_names"] == ["fc.bias"]
    decays = [groups[f"head_{kind}"]["weight_decay"] for kind in ("weights", "bias")]
    assert decays == [0.01, 0.0]
    every = [name for group in groups.values() for name in group["param_names"]]
    assert sorted(every) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    for lr in (0.1, 0.025):
        set_lr(optimizer, lr)
        assert groups["head_weights"]["lr"] == groups["head_bias"]["lr"] == 10 * lr
        assert all(one["lr"] == lr for name, one in groups.items() if "head" not in name)
        assert lr_in_force(optimizer) == lr, "also where the head alone trains"


# Fine-tuning as a whole: 19 steps of a network that begins with weights of three classes.

FINE = ("--model.freeze=[stem,1]", "--optim.head_lr=1.0", "--optim.base_lr=0.2")


@pytest.fixture
def weights(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "from.pt", CIFAR_8, classes=["star", "anchor", "circle"])


@pytest.mark.parametrize("sums", ["fixed", "fast"])
def test_a_run_stopped_at_2_ranks_and_finished_by_1_has_the_same_bits(
    small_data, tmp_path, weights, sums
):
    options = (f"--init={weights}", *FINE, f"--run.sums={sums}")
    one = ("--data.local_batch_size=4", *jobs.RESUMABLE)
    wanted = None
    if sums == "fixed":
        wanted = newest_checkpoint(train_here(small_data, tmp_path / "whole", *one, *options))
    source = torch.load(weights, weights_only=True)["model"]
    two = jobs.run(
        [str(SABOTEUR), "stop-step:9:1", *resumable(small_data, tmp_path), *options], ranks=2
    )
    assert two.codes == [75, 75], two.text
    weights.unlink()
    run = train_here(small_data, tmp_path, *one, *options)
    found = newest_checkpoint(run)
    for name, value in found["model"].items():
        if name.startswith(("conv1", "bn1", "layer1")):
            assert torch.equal(value, source[name]), name
        elif name.endswith(("weight", "running_mean")):
            assert name.startswith("fc") or not torch.equal(value, source[name]), name
    assert not [name for name in found["momentum"] if name.startswith(("conv1", "bn1", "layer1"))]
    if wanted is not None:
        for part in ("step", "position", "model", "momentum", "history"):
            assert differences(found[part], wanted[part]) == []
    lines = [line for line in metrics(run) if line["event"] == "train"]
    assert all(line["gradient_norm_stem"] == 0 < line["gradient_norm_fc"] for line in lines)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("sums", ["fixed", "fast"])
def test_ranks_train_the_head_alone_where_no_statistics_are_left_to_exchange(
    small_data, tmp_path, weights, sums
):
    options = (
        f"--init={weights}", "--model.freeze=[backbone]", f"--run.sums={sums}",
        "--schedule.epochs=0.4", "--schedule.drop_epochs=[]",
    )  # fmt: skip
    two = jobs.run(jobs.train(small_data, tmp_path, *options), ranks=2)
    assert two.codes == [0, 0], two.text
    found = newest_checkpoint(tmp_path / "test")
    source = torch.load(weights, weights_only=True)["model"]
    assert found["momentum"].keys() == {"fc.weight", "fc.bias"}
    body = [name for name in source if not name.startswith("fc.")]
    assert [n for n in body if not torch.equal(found["model"][n], source[n])] == []
    shutil.rmtree(tmp_path)
