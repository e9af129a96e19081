"""Each mode's dtypes, skipped steps, exact resume and the end of a diverged run, on the CPU."""

import logging
from copy import deepcopy
from io import BytesIO

import pytest
import torch
from torch import nn

from pipeline.model.norm import BatchNormAct
from pipeline.train.optimizer import Update, build_optimizer
from pipeline.train.precision import Mode, Precision, TrainingDiverged

CPU = torch.device("cpu")


class Job:
    """A small model, its optimizer and a precision, stepped by hand."""

    def __init__(
        self, mode: Mode, max_skipped_steps: int = 20, init_scale: float = 2.0**16
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), BatchNormAct(4), nn.Flatten(), nn.Linear(4 * 36, 5)
        )
        self.optimizer = build_optimizer(self.model, 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
        self.precision = Precision(mode, CPU, init_scale, max_skipped_steps)

    def backward(self, seed: int = 0) -> None:
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad()
        with self.precision.autocast():
            loss = nn.functional.cross_entropy(self.model(images), torch.arange(4))
        self.precision.backward(loss)

    def step(self, seed: int = 0, value: float | None = None) -> None:
        """One step, with `value` for one number of a gradient."""
        self.backward(seed)
        if value is not None:
            self.model[3].weight.grad[0, 0] = value
        self.precision.step(self.optimizer)

    def overflow(self, times: int = 1) -> None:
        for _ in range(times):
            self.step(value=float("inf"))

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("mode", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_activations_have_the_modes_dtype_and_parameters_fp32(mode, dtype):
    job = Job(mode)
    seen = []
    for module in job.model:
        module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    before = job.weights()
    job.step()
    assert seen == [dtype] * 4
    assert not equal(before, job.weights())
    for p in job.model.parameters():
        assert p.dtype == p.grad.dtype == torch.float32
        assert job.optimizer.state[p]["momentum_buffer"].dtype == torch.float32
    assert all(buffer.dtype != dtype or dtype == torch.float32 for buffer in job.model[1].buffers())


def test_tf32_on_a_cpu_is_refused_with_what_to_set():
    with pytest.raises(ValueError) as error:
        Precision("tf32", CPU)
    assert str(error.value) == (
        "optim.amp=tf32 needs an NVIDIA GPU of compute capability 8.0 or later and the device is "
        "cpu; set optim.amp=off for fp32, or bf16"
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("mode", "allowed"), [("off", False), ("bf16", False), ("tf32", True)])
def test_products_are_in_tf32_only_where_it_was_asked_for(mode, allowed):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = not allowed
        with Precision(mode, torch.device("cuda", 0)).autocast():
            pass
        assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@pytest.mark.gpu
def test_a_product_is_rounded_to_10_bits_in_tf32_alone():
    a = torch.full((64, 64), 1 + 2.0**-12, device="cuda")
    found = {}
    for mode in ("off", "tf32"):
        with Precision(mode, torch.device("cuda", 0)).autocast():
            found[mode] = float((a @ torch.eye(64, device="cuda"))[0, 0])
    Precision("off", torch.device("cuda", 0)).autocast()
    assert found == {"off": 1 + 2.0**-12, "tf32": 1.0}


def test_off_is_plain_pytorch_bit_for_bit():
    job, plain = Job("off"), Job("off")
    for seed in range(3):
        job.step(seed)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        plain.optimizer.zero_grad()
        nn.functional.cross_entropy(plain.model(images), torch.arange(4)).backward()
        plain.optimizer.step()
    assert equal(job.weights(), plain.weights())


@pytest.mark.parametrize("mode", ["off", "bf16"])
def test_only_fp16_has_a_scale_and_skips(mode):
    job = Job(mode, max_skipped_steps=1)
    job.precision.load_state_dict(Job(mode).precision.state_dict())
    job.overflow()
    assert (job.precision.scale, job.precision.skipped_steps) == (1, 0)


def test_fp16_unscales_the_gradients_to_those_of_fp32_once():
    exact, job, unasked = Job("off"), Job("fp16"), Job("fp16")
    exact.backward()
    job.backward()
    scaled = job.model[3].weight.grad.norm()
    job.precision.unscale_(job.optimizer)
    expected = exact.model[3].weight.grad
    assert scaled > 60_000 * expected.norm()
    torch.testing.assert_close(job.model[3].weight.grad, expected, rtol=0.02, atol=1e-3)
    with pytest.raises(RuntimeError, match="already been called"):
        job.precision.unscale_(job.optimizer)
    job.precision.step(job.optimizer)
    unasked.step()
    assert equal(job.weights(), unasked.weights())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_fp16_skips_a_step_with_a_non_finite_gradient_and_halves_the_scale(value):
    job = Job("fp16")
    job.step()
    before, scale = job.weights(), job.precision.scale
    job.step(value=value)
    assert equal(before, job.weights())
    assert job.precision.scale == scale / 2
    assert (job.precision.skipped_steps, job.precision.skipped_in_a_row) == (1, 1)
    job.step(1)
    assert not equal(before, job.weights())
    assert (job.precision.skipped_steps, job.precision.skipped_in_a_row) == (1, 0)


def test_divergence_names_the_gradient_and_the_scale_also_after_a_load():
    first, job = Job("fp16", max_skipped_steps=3), Job("fp16", max_skipped_steps=3)
    first.overflow(2)
    job.precision.load_state_dict(first.precision.state_dict())
    message = r"3 steps in a row .* loss scale of 8192: .*gradient of 3\.weight .*optim\.base_lr"
    with pytest.raises(TrainingDiverged, match=message):
        job.overflow()


def test_divergence_is_seen_at_the_next_check_when_skips_start_between_two():
    job = Job("fp16", max_skipped_steps=3)
    job.step()
    job.overflow(4)
    with pytest.raises(TrainingDiverged, match="5 steps in a row"):
        job.overflow()


def test_a_count_looked_at_later_ends_the_run_later_unless_it_has_recovered():
    job, recovered = Job("fp16", max_skipped_steps=4), Job("fp16", max_skipped_steps=4)
    for one in (job, recovered):
        one.precision._delay = 2  # as on a GPU
        one.overflow(5)  # the count was copied at step 4
    with pytest.raises(TrainingDiverged, match="6 steps in a row"):
        job.overflow()
    for seed in range(8):
        recovered.step(seed)
    assert recovered.precision.skipped_in_a_row == 0


def test_a_look_that_was_still_to_come_comes_after_a_load():
    first, job = (Job("fp16", max_skipped_steps=4) for _ in range(2))
    for one in (first, job):
        one.precision._delay = 2  # as on a GPU
    first.overflow(5)  # the count was copied at step 4, to be looked at after step 6
    job.precision.load_state_dict(first.precision.state_dict())
    with pytest.raises(TrainingDiverged, match="6 steps in a row"):
        job.overflow()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sgd", "lars", "lamb"])
def test_on_a_gpu_no_step_waits(kind):
    device = torch.device("cuda", 0)
    parameter = nn.Linear(4, 4).to(device)
    optimizer = build_optimizer(parameter, 0.1, 0.9, 1e-4, False, Update(kind, nesterov=True))
    precision = Precision("fp16", device, max_skipped_steps=4)
    images = torch.ones(2, 4, device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):
            with precision.autocast():
                loss = parameter(images).square().mean()
            precision.backward(loss)
            precision.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_skips_that_are_not_in_a_row_do_not_end_the_run():
    job = Job("fp16", max_skipped_steps=2)
    for _ in range(3):
        job.overflow()
        job.step()
    assert job.precision.skipped_steps == 3


def test_state_survives_a_checkpoint_bit_for_bit():
    job, resumed = Job("fp16", init_scale=2.0**12), Job("fp16")
    job.step(0)
    job.overflow()
    file = BytesIO()
    torch.save(job.precision.state_dict(), file)
    file.seek(0)
    resumed.precision.load_state_dict(torch.load(file, weights_only=True))
    resumed.model.load_state_dict(job.model.state_dict())
    # load_state_dict shares the momentum buffers it is given.
    resumed.optimizer.load_state_dict(deepcopy(job.optimizer.state_dict()))
    assert (resumed.precision.scale, resumed.precision.skipped_in_a_row) == (2.0**11, 1)
    for one in (job, resumed):
        one.step(2)
        one.overflow()
        one.step(4)
    assert equal(job.weights(), resumed.weights())
    assert job.precision.state_dict() == resumed.precision.state_dict()
    assert resumed.precision.skipped_steps == 2


def test_growth_goes_on_counting_after_a_load():
    job, resumed = Job("fp16"), Job("fp16")
    state = job.precision.state_dict()
    state["scaler"]["_growth_tracker"] = 1999  # GradScaler doubles the scale after 2000 good steps
    resumed.precision.load_state_dict(state)
    resumed.step()
    assert (resumed.precision.scale, resumed.precision.skipped_steps) == (2.0**17, 0)


def test_state_of_another_mode_is_refused_with_both_named():
    state = Job("bf16").precision.state_dict()
    with pytest.raises(ValueError, match=r"optim\.amp=fp16 differs from bf16"):
        Job("fp16").precision.load_state_dict(state)


def test_fp16_on_a_cpu_warns_once(caplog):
    with caplog.at_level(logging.WARNING):
        Job("fp16").step()
        Job("bf16").step()
    assert [record.message for record in caplog.records] == [
        "fp16 on a CPU is about 10 times slower than bf16: it is for tests"
    ]
