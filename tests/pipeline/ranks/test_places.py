"""What each rank has to itself, under launchers that show it all of a node or its own part."""

import pytest
import torch

from pipeline.ranks.places import Place, Share, choose_device, share_of

ALL_CORES = tuple(range(16))
FOUR_GPUS = ("gpu-a", "gpu-b", "gpu-c", "gpu-d")


def test_ranks_that_see_the_whole_node_divide_it():
    places = [Place("n1", ALL_CORES, FOUR_GPUS)] * 4 + [Place("n2", ALL_CORES, ("gpu-e",))]
    assert [share_of(places, rank) for rank in range(5)] == [
        Share(4, 0), Share(4, 1), Share(4, 2), Share(4, 3), Share(16, 0)
    ]  # fmt: skip


def test_ranks_that_see_their_own_part_have_it_whole():
    places = [
        Place("n1", tuple(range(4 * i, 4 * i + 4)), (gpu,)) for i, gpu in enumerate(FOUR_GPUS)
    ]
    assert [share_of(places, rank) for rank in range(4)] == [Share(4, 0)] * 4


def test_more_ranks_than_cores_have_one_core_each():
    assert share_of([Place("n1", (0,), ())] * 3, 2).cores == 1


def test_nodes_without_gpus_do_not_count_as_sharing():
    places = [Place("n1", ALL_CORES, ()), Place("n2", ALL_CORES, ())]
    assert share_of(places, 1) == Share(16, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_cure():
    message = "run.device=cuda, but PyTorch sees no GPU on .*; set run.device=auto"
    with pytest.raises(ValueError, match=message):
        choose_device("cuda", 0)
