"""The verdict as a pure function of figures: its kinds at their limits, its shares and cures."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jobs
import pytest

from pipeline.train.verdict import EXPOSED_LIMIT, Figures, judge, kind_of, seen

NODE = Figures(
    loader=2900, model=3400, decode_share=0.71, read_share=0.1, decoder="cpu", threads=12,
    cores=16, gpu=True,
)  # fmt: skip


def but(**changes):
    return dataclasses.replace(NODE, **changes)


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        (
            NODE,
            "loader 2,900 img/s < model 3,400 img/s: input-bound; decoding takes 71% of the "
            "loader; 3 more threads (data.threads=15) or data.decode=gpu would lift it",
        ),
        (
            but(loader=6120),
            "loader 6,120 img/s > model 3,400 img/s: model-bound; the loader could feed 1.8 times "
            "as much",
        ),
        (
            but(loader=3500),
            "loader 3,500 img/s, model 3,400 img/s: balanced; the loader could feed 1.03 times as "
            "much",
        ),
        (
            but(loader=6120, exposed_communication_share=0.34, fp16_time=0.5),
            "with gradients 2,244 img/s < model 3,400 img/s: communication-bound; 34% of the step "
            "waits for gradients; optim.gradient_compression=fp16 (leaves about 20%) or twice the "
            "images per rank and step (leaves at most 20%) would lift it",
        ),
        (
            but(loader=9000, exposed_communication_share=0.34, ranks=2),
            "with gradients at 2 ranks 2,244 img/s < model 3,400 img/s: communication-bound; 34% "
            "of the step waits for gradients; twice the images per rank and step (leaves at most "
            "20%) would lift it",
        ),
        (
            but(loader=1122, exposed_communication_share=0.34),
            "loader 1,122 img/s < with gradients 2,244 img/s < model 3,400 img/s: input-bound; "
            "decoding takes 71% of the loader; 4 more threads (data.threads=16: 67% of what is "
            "needed) or data.decode=gpu would lift it",
        ),
        (
            Figures(reached=800, data_wait_share=0.2, threads=4, cores=8, decoder="cpu"),
            "the loader (input-bound); 20% of the step waits for images; 1 more thread "
            "(data.threads=5) would lift it",
        ),
        (
            Figures(
                reached=800,
                data_wait_share=0.2,
                threads=4,
                cores=4,
                decoder="cpu",
                config="runs/my run/config.yaml",
            ),
            "the loader (input-bound); 20% of the step waits for images; python -m "
            "pipeline.benchmark all --config 'runs/my run/config.yaml' says which part of the "
            "loader it is",
        ),
        (
            Figures(reached=800, data_wait_share=0.01, exposed_communication_share=0.03),
            "the model (model-bound); 1% of the step waits for images, 3% for gradients",
        ),
        (
            Figures(reached=800, data_wait_share=0.03),
            "loader and model alike (balanced); 3% of the step waits for images",
        ),
        (
            but(loader=105, model=108, exposed_communication_share=0.099),
            "loader 105 img/s, model 108 img/s: balanced; the loader could feed 1.08 times as much",
        ),
        (
            but(loader=108, model=108.5, exposed_communication_share=0.099),
            "loader 108 img/s > with gradients 97.8 img/s: model-bound; the loader could feed 1.1 "
            "times as much",
        ),
        (
            Figures(exposed_communication_share=0.5),
            "the network (communication-bound); 50% of the step waits for gradients; twice the "
            "images per rank and step (leaves at most 33%) would lift it",
        ),
        (Figures(), "no verdict, as what the model takes is not known"),
        (Figures(model=100), "no verdict, as what the loader gives is not known"),
        (Figures(loader=100), "no verdict, as what the model takes is not known"),
    ],
)
def test_the_line_names_speeds_shares_and_computed_cures(figures, line):
    assert str(judge(figures)) == line


@pytest.mark.parametrize(
    ("figures", "kind"),
    [
        (Figures(loader=94.9, model=100), "input-bound"),
        (Figures(loader=95.1, model=100), "balanced"),
        (Figures(loader=109.9, model=100), "balanced"),
        (Figures(loader=110.1, model=100), "model-bound"),
        # What the gradients leave counts, not what the model alone takes.
        (Figures(loader=91, model=100, exposed_communication_share=0.09), "balanced"),
        (Figures(loader=86, model=100, exposed_communication_share=0.09), "input-bound"),
        (
            Figures(loader=200, model=100, exposed_communication_share=EXPOSED_LIMIT),
            "communication-bound",
        ),
        (Figures(loader=200, model=100, exposed_communication_share=0.099), "model-bound"),
        (Figures(reached=1, data_wait_share=0.05), "input-bound"),
        (Figures(reached=1, data_wait_share=0.049), "balanced"),
        (Figures(reached=1, data_wait_share=0.019), "model-bound"),
        (Figures(reached=1, data_wait_share=1.0), "input-bound"),
        # A training waits for both one after the other: the longer wait limits it.
        (
            Figures(reached=1, data_wait_share=0.1, exposed_communication_share=0.2),
            "communication-bound",
        ),
        (
            Figures(reached=1, data_wait_share=0.2, exposed_communication_share=0.1),
            "input-bound",
        ),
        (
            Figures(reached=1, data_wait_share=0.06, exposed_communication_share=0.08),
            "input-bound",
        ),
    ],
)
def test_the_kind_changes_at_its_limits(figures, kind):
    assert kind_of(figures) == kind


@pytest.mark.parametrize(
    ("data_wait", "communication", "kind"),
    [(0.01, 0.0, "model-bound"), (0.2, 0.02, "input-bound"), (0.01, 0.2, "communication-bound")],
)
def test_a_follower_of_a_run_judges_its_lines_as_the_run_itself(data_wait, communication, kind):
    line = {
        "images_per_sec": 100.0, "data_wait_share": data_wait, "communication_share": communication
    }  # fmt: skip
    run = seen(line, ranks=2, known=Figures(cores=2, threads=1, decoder="cpu"))
    assert (run.reached, run.cores) == (50.0, 2)
    assert kind_of(seen(line)) == judge(run).kind == kind
    assert seen(line, ranks=1).exposed_communication_share is None  # it waits for nobody


def test_no_more_threads_are_advised_than_there_are_cores():
    assert judge(but(threads=16)).cures == ("data.decode=gpu", "image files of fewer pixels")
    assert judge(but(threads=20, gpu=False)).cures == ("image files of fewer pixels",)
    some = judge(but(threads=15, loader=1450, gpu=False)).cures[0]
    assert some == "1 more thread (data.threads=16: 45% of what is needed)"
    # The model computes on the rest of the cores.
    beside = judge(but(gpu=False, model_threads=4))
    assert not any("thread" in cure for cure in beside.cures)
    one_core = judge(but(gpu=False, model_threads=3))
    assert one_core.cures[0] == "1 more thread (data.threads=13: 92% of what is needed)"


def test_the_cure_follows_the_part_that_takes_most():
    reading = judge(but(decode_share=0.1, read_share=0.85))
    assert "reading takes 85% of the loader" in reading.text
    assert reading.cures == ("the data on a local disk (python -m pipeline.prepare stage)",)
    resizing = judge(but(decode_share=0.3, read_share=0.1, gpu=False))
    assert "resizing and normalising take 60% of the loader" in resizing.text
    assert resizing.cures[-1] == "a smaller data.image_size"
    pixels = judge(but(decoder="none", decode_share=None, read_share=None))
    assert pixels.cures == ("3 more threads (data.threads=15)",)
    on_gpu = judge(but(decoder="gpu"))
    assert on_gpu.cures == ("a higher data.hw_decoder_load", "image files of fewer pixels")


def test_fp16_is_advised_only_where_it_was_measured_to_be_quicker():
    slow = but(loader=9000, exposed_communication_share=0.34)
    for figures in (
        slow,
        dataclasses.replace(slow, fp16_time=1.4),
        dataclasses.replace(slow, fp16_time=0.5, compression="fp16"),
    ):
        assert "fp16" not in judge(figures).text


def test_loader_and_model_on_the_same_cores_share_them():
    figures = Figures(loader=300, model=100, threads=2, cores=2, model_threads=2)
    assert "on the same 2 cores both reach about 75.0 img/s" in judge(figures).text
    apart = dataclasses.replace(figures, cores=4)
    assert "same" not in judge(apart).text


def test_a_training_can_ask_for_its_verdict_without_torch():
    script = (
        "import sys; from pipeline.train.verdict import Figures, judge\n"
        "print(judge(Figures(reached=9, data_wait_share=0.5)).kind, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=jobs.REPOSITORY
    )
    assert done.stdout.split() == ["input-bound", "False"], done.stderr
