"""The verdict as a pure function of figures: its kinds at their limits, its shares and fixes."""

from __future__ import annotations

import dataclasses

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
            Figures(reached=800, data_wait_share=0.2, threads=4, cores=4, decoder="cpu",
                    config="runs/my run/config.yaml"),
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
            "gradients between ranks (communication-bound); 50% of the step waits for gradients; "
            "twice the "
            "images per rank and step (leaves at most 33%) would lift it",
        ),
        (Figures(), "no verdict, as what the model takes is not known"),
        (Figures(model=100), "no verdict, as what the loader gives is not known"),
        (Figures(loader=100), "no verdict, as what the model takes is not known"),
    ],
)  # fmt: skip
def test_the_line_names_speeds_shares_and_computed_fixes(figures, line):
    assert str(judge(figures)) == line


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        ({"loader": 94.9}, "input-bound"),
        ({"loader": 95.1}, "balanced"),
        ({"loader": 109.9}, "balanced"),
        ({"loader": 110.1}, "model-bound"),
        # What the gradients leave counts, not what the model alone takes.
        ({"loader": 91, "exposed": 0.09}, "balanced"),
        ({"loader": 86, "exposed": 0.09}, "input-bound"),
        ({"loader": 200, "exposed": EXPOSED_LIMIT}, "communication-bound"),
        ({"loader": 200, "exposed": 0.099}, "model-bound"),
        ({"waits": 0.05}, "input-bound"),
        ({"waits": 0.049}, "balanced"),
        ({"waits": 0.019}, "model-bound"),
        ({"waits": 1.0}, "input-bound"),
        # A training waits for both one after the other: the longer wait limits it.
        ({"waits": 0.1, "exposed": 0.2}, "communication-bound"),
        ({"waits": 0.2, "exposed": 0.1}, "input-bound"),
        ({"waits": 0.06, "exposed": 0.08}, "input-bound"),
    ],
)
def test_the_kind_changes_at_its_limits(known, kind):
    exposed, loader = known.get("exposed"), known.get("loader")
    figures = Figures(exposed_communication_share=exposed, data_wait_share=known.get("waits"))
    speeds = {"reached": 1} if loader is None else {"loader": loader, "model": 100}
    assert kind_of(dataclasses.replace(figures, **speeds)) == kind


@pytest.mark.parametrize(
    ("data_wait", "communication", "kind"),
    [(0.01, 0.0, "model-bound"), (0.2, 0.02, "input-bound"), (0.01, 0.2, "communication-bound")],
)
def test_a_follower_of_a_run_judges_its_lines_as_the_run_itself(data_wait, communication, kind):
    line = {"images_per_sec": 100.0, "data_wait_share": data_wait}
    line["communication_share"] = communication
    run = seen(line, ranks=2, known=Figures(cores=2, threads=1, decoder="cpu"))
    assert (run.reached, run.cores) == (50.0, 2)
    assert kind_of(seen(line)) == judge(run).kind == kind
    assert seen(line, ranks=1).exposed_communication_share is None  # it waits for nobody


MORE, FEWER = "data.decode=gpu", "image files of fewer pixels"
TWICE = "twice the images per rank and step (leaves at most 20%)"


@pytest.mark.parametrize(
    ("changes", "fixes"),
    [
        ({"threads": 16}, (MORE, FEWER)),  # no more threads than there are cores
        ({"threads": 20, "gpu": False}, (FEWER,)),
        (
            {"threads": 15, "loader": 1450, "gpu": False},
            ("1 more thread (data.threads=16: 45% of what is needed)", FEWER),
        ),
        # The model computes on the rest of the cores.
        ({"gpu": False, "model_threads": 4}, (FEWER,)),
        (
            {"gpu": False, "model_threads": 3},
            ("1 more thread (data.threads=13: 92% of what is needed)", FEWER),
        ),
        # The part that takes most is what is to be made quicker.
        (
            {"decode_share": 0.1, "read_share": 0.85},
            ("the data on a local disk (python -m pipeline.prepare stage)",),
        ),
        (
            {"decode_share": 0.3, "read_share": 0.1, "gpu": False},
            ("3 more threads (data.threads=15)", "a smaller data.image_size"),
        ),
        (
            {"decoder": "none", "decode_share": None, "read_share": None},
            ("3 more threads (data.threads=15)",),
        ),
        ({"decoder": "gpu"}, ("a higher data.hw_decoder_load", FEWER)),
        # fp16 is advised only where it was measured to be quicker.
        ({"loader": 9000, "exposed_communication_share": 0.34}, (TWICE,)),
        ({"loader": 9000, "exposed_communication_share": 0.34, "fp16_time": 1.4}, (TWICE,)),
        (
            {
                "loader": 9000, "exposed_communication_share": 0.34, "fp16_time": 0.5,
                "compression": "fp16",
            },
            (TWICE,),
        ),
    ],
)  # fmt: skip
def test_what_would_help_follows_what_takes_most(changes, fixes):
    assert judge(but(**changes)).cures == fixes


@pytest.mark.parametrize(
    ("decode", "read", "reason"),
    [(0.1, 0.85, "reading takes 85% of"), (0.3, 0.1, "resizing and normalising take 60% of")],
)
def test_the_line_names_the_part_that_takes_most(decode, read, reason):
    assert f"{reason} the loader" in judge(but(decode_share=decode, read_share=read)).text


def test_loader_and_model_on_the_same_cores_share_them():
    figures = Figures(loader=300, model=100, threads=2, cores=2, model_threads=2)
    assert "on the same 2 cores both reach about 75.0 img/s" in judge(figures).text
    apart = dataclasses.replace(figures, cores=4)
    assert "same" not in judge(apart).text
