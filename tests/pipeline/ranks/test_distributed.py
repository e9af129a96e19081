"""Two real Horovod ranks hold together, and one process is the same interface without Horovod."""

import dataclasses
import inspect
import json
import os
from types import SimpleNamespace

import jobs
import pytest
import torch
from rank_checks import CHECKS

from pipeline.ranks import shared
from pipeline.ranks.gradients import Summing
from pipeline.ranks.heartbeat import Peer
from pipeline.ranks.horovod import HorovodWorld, nccl_built
from pipeline.ranks.torch_engine import TorchWorld
from pipeline.ranks.world import World
from pipeline.system.failure import PeerLost

RANK_CHECKS = jobs.REPOSITORY / "tests" / "rank_checks.py"

ALONE = """
import sys
import torch
from pipeline.ranks import connect
from pipeline.ranks.gradients import Summing
from pipeline.system.failure import Reported
import pipeline.train.run

world = connect()
tensor = torch.tensor([2**53 + 1, -1])
assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
assert world.sum(tensor).tolist() == tensor.tolist()
assert world.gather(tensor).tolist() == [tensor.tolist()]
assert world.maximum([3, -1, True]) == [3, -1, 1]
assert world.broadcast_object({"a": 1}) == {"a": 1}
assert world.gather_objects("a") == ["a"]
assert world.on_rank0(lambda: 5) == world.together(lambda: 5) == 5
world.require_same({"a": 1})
world.barrier()

model = torch.nn.Linear(2, 2)
averager = world.average_gradients(model, Summing())
model(torch.ones(1, 2)).sum().backward()
averager.synchronize()
assert model.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
try:
    world.raise_together(ValueError("said once"))
except Reported as error:
    assert (error.message, int(error.code)) == ("said once", 2)
assert not [name for name in sys.modules if name.startswith("horovod")]
"""


@pytest.fixture(scope="module", params=["horovod", "torch", "horovod apart", "torch apart"])
def checked(request, tmp_path_factory):
    """The ranks that ran tests/rank_checks.py on an engine, and each rank's outcomes by check."""
    folder = tmp_path_factory.mktemp("checks")
    engine, *apart = request.param.split()
    ranks = jobs.run([str(RANK_CHECKS), str(folder), *apart], ranks=2, engine=engine)
    files = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), ranks.text
    return ranks, [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks(checked, check):
    _, outcomes = checked
    for rank, outcome in enumerate(outcomes):
        assert outcome[check] is None, f"rank {rank}: {outcome[check]}"


def test_an_error_on_one_rank_is_printed_once_and_all_leave_with_its_code(checked):
    ranks, _ = checked
    line = "error: rank 1: the last error of the checks; nothing is to be fixed"
    assert ranks.codes == [2, 2]
    assert ranks.outputs[0].splitlines()[-1] == line
    assert "error:" not in ranks.outputs[1]


LAUNCHED_ALONE = {
    "by hand": {},
    "horovodrun -np 1": {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"},
    "torchrun": {
        "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"
    },
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHED_ALONE)
def test_one_rank_is_one_process_without_an_engine(launcher):
    alone = jobs.run(["-c", ALONE], **LAUNCHED_ALONE[launcher])
    assert alone.codes == [0], alone.text
    assert alone.text == "error: said once\n"


def test_both_engines_have_the_interface_of_one_process():
    for engine in (HorovodWorld, TorchWorld):
        for name, method in inspect.getmembers(World, inspect.isfunction):
            if name != "__init__":
                assert inspect.signature(getattr(engine, name)) == inspect.signature(method), name


class OnGpu(torch.nn.Linear):
    """A layer whose parameters say that they lie on a GPU."""

    def parameters(self, recurse=True):
        for parameter in super().parameters(recurse):
            yield SimpleNamespace(device=torch.device("cuda", 0), shape=parameter.shape)


@pytest.mark.skipif(nccl_built(), reason="this Horovod has NCCL")
def test_gradients_on_gpus_are_refused_without_nccl():
    world = HorovodWorld.__new__(HorovodWorld)
    said = (
        "gradients on GPUs cannot be summed over ranks: this Horovod is built without NCCL, with "
        "which it would hang; start the ranks with torchrun, whose NCCL comes with PyTorch, or"
    )
    with pytest.raises(ValueError, match=said):
        world.average_gradients(OnGpu(2, 2), Summing())


@pytest.mark.skipif(torch.distributed.is_nccl_available(), reason="this PyTorch has NCCL")
def test_gradients_on_gpus_are_refused_with_a_pytorch_for_cpus():
    world = TorchWorld.__new__(TorchWorld)
    said = "cannot be summed over ranks: this PyTorch is built without NCCL; install one that is"
    with pytest.raises(ValueError, match=said):
        world.average_gradients(OnGpu(2, 2), Summing())


def test_bf16_on_the_wire_is_refused_by_horovod():
    world = HorovodWorld.__new__(HorovodWorld)
    said = "optim.gradient_compression=bf16 cannot run on Horovod, which has no bf16; start the"
    with pytest.raises(ValueError, match=said):
        world.average_gradients(torch.nn.Linear(2, 2), Summing(compression="bf16"))


def test_a_lost_peer_is_told_once():
    world, told = TorchWorld.__new__(TorchWorld), PeerLost("rank 1 is gone")
    with pytest.raises(PeerLost) as raised, world._collective(), world._collective():
        raise told
    assert raised.value is told


@pytest.mark.parametrize("case", ["itself", "another host", "another process", "a pipe", "gone"])
def test_memory_is_shared_with_the_very_process_that_says_so(case):
    """In a container of its own every rank may be process 1."""
    sign, me = b"s" * 16, Peer.here(0)
    probe = os.memfd_create("probe")
    os.write(probe, sign)
    reads, writes = os.pipe()
    shown = {
        "itself": (me, probe, sign),
        "another host": (dataclasses.replace(me, host="elsewhere"), probe, sign),
        "another process": (me, probe, b"t" * 16),
        "a pipe": (me, reads, sign),
        "gone": (dataclasses.replace(me, pid=2**22 + 1), probe, sign),
    }[case]
    assert shared._shows(*shown) == (case == "itself")
    for descriptor in (probe, reads, writes):
        os.close(descriptor)
