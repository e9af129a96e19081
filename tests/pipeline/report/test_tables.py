"""Our numbers compare with those of the same network, test and data, and with no others."""

from collections import defaultdict

import pytest
from made_runs import CIFAR, write_evaluation

from pipeline.report import references
from pipeline.report.pages import Heading, Table
from pipeline.report.references import MULTI_SCALES
from pipeline.report.runs import read_run
from pipeline.report.tables import comparison_blocks

IMAGENET = {"data.dataset": "imagenet-1k", "model.depth": 34, "model.variant": "v1"}
DRAWN = CIFAR | {"data.root": "data/drawn"}
SIZE = {"steps": 800, "val": 50_000}
TEN_CROPS = "ImageNet, ten crops"
LATER = "ImageNet, later references"
CIFAR_TABLE = "CIFAR-10, the single 32x32 view"
NO_NUMBER = "Results without a published number"


def tables(*folders) -> dict[str, list[tuple[str, ...]]]:
    """The rows by their table's heading; none for a table that is not shown."""
    blocks = comparison_blocks([read_run(folder) for folder in folders])
    found, title = defaultdict(list), ""
    for block in blocks:
        if isinstance(block, Heading):
            title = block.text
        if isinstance(block, Table):
            found[title if title != "Results" else NO_NUMBER] = list(block.rows)
    return found


def ours(rows) -> dict[str, str]:
    """Our error by (network, source), where there is one."""
    return {f"{row[0]}, {row[2].partition(' (')[0]}": row[4] for row in rows if row[4]}


def test_with_no_result_there_is_no_section(make_run):
    assert comparison_blocks([]) == []
    own = make_run("own", {"data.root": "data/own"}, steps=800)
    assert comparison_blocks([read_run(own)]) == []  # the summary has its validation


def test_a_table_with_a_result_of_ours_has_every_row_of_theirs(make_run):
    folders = [make_run("cifar", CIFAR), make_run("imagenet", IMAGENET, **SIZE)]
    folders.append(
        make_run("late", IMAGENET | {"model.depth": 50, "model.variant": "v1.5"}, **SIZE)
    )
    write_evaluation(folders[1], "10-crop")
    found = tables(*folders)
    shown = [table for table in references.tables() if found[table.title]]
    assert [table.title for table in shown] == [TEN_CROPS, LATER, CIFAR_TABLE]
    rows = [row for table in shown for row in found[table.title] if row[0]]
    assert len(rows) == sum(len(table.rows) for table in shown)
    # Table 3 of the paper, and torchvision's 76.13% as an error.
    assert ("ResNet-34 C", "10-crop", "paper, Table 3", "24.19 / 7.40", "", "") in rows
    theirs = {row[:4] for row in rows}
    assert ("ResNet-50 v1.5", "1-crop", "torchvision V1 (90 epochs)", "23.87") in theirs


def test_a_result_stands_in_the_row_of_its_network_and_test(make_run):
    folder = make_run("shortcuts-a", IMAGENET | {"model.shortcut": "A"}, **SIZE)
    write_evaluation(folder, "10-crop")
    found = tables(folder)
    assert ours(found[TEN_CROPS]) == {"ResNet-34 A, paper, Tables 2 and 3": "25.00 / 8.00"}
    (row,) = [row for row in found[TEN_CROPS] if row[4]]
    assert row[5] == "shortcuts-a, step 3,910 of 256 images, 50,000 images, 2026-11-20"
    assert ours(found[LATER]) == {}  # those are of option B
    (validation,) = found[NO_NUMBER]
    assert validation[:3] == ("ImageNet-1k", "ResNet-34 A", "1-crop")
    assert "validation in training" in validation[4]


def test_plain_nets_and_variants_are_not_mixed_up(make_run):
    plain = make_run("plain", IMAGENET | {"model.residual": False}, **SIZE)
    later = make_run("later", IMAGENET | {"model.depth": 50, "model.variant": "v1.5"}, **SIZE)
    for folder in (plain, later):
        write_evaluation(folder, "10-crop")
    found = tables(plain, later)
    assert ours(found[TEN_CROPS]) == {"plain-34, paper, Tables 2 and 3": "25.00 / 8.00"}
    assert set(ours(found[LATER])) == {
        "ResNet-50 v1.5, fb.resnet.torch", "ResNet-50 v1.5, torchvision V1",
        "ResNet-50 v1.5, Goyal et al. 2017", "ResNet-50 v1.5, NVIDIA ConvNets, AMP",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "notes"),
    [
        ({"data.global_batch_size": 256}, {"90 epochs, batch 256)"}),
        ({"data.global_batch_size": 8192}, {"90 epochs, batch 8192, 5 epochs of warm-up)"}),
        ({"data.global_batch_size": 8192, "schedule.warmup_epochs": 0},
         {"90 epochs, batch 8192, no warm-up)"}),
        ({"data.global_batch_size": 1024}, set()),
        ({"schedule.epochs": 40.0}, set()),
        ({"schedule.epochs": None, "schedule.steps": 9000}, set()),
    ],
)  # fmt: skip
def test_goyals_numbers_are_of_their_recipes(make_run, recipe, notes):
    run = make_run("a", {"data.dataset": "imagenet-1k"} | recipe, **SIZE)
    rows = tables(run)[LATER]
    sources = [row[2].partition(" (") for row in rows if row[4]]
    assert {note for source, _, note in sources if source.startswith("Goyal")} == notes


@pytest.mark.parametrize(
    "other",
    [
        {"images": 49_000},
        {"data": {"dataset": None}},
        {"other_data": True, "data": {"root": "data/c"}},
        {"data": {"image_size": 160}},
        {"ensemble": ["a.pt", "b.pt"]},
        {"protocol": "multi-scale", "scales": [224, 256]},
        {"protocol": "multi-scale", "scales": list(MULTI_SCALES),
         "data": {"image_size": 192}, "changed": {"data.image_size": 192}},
        {"other_data": True, "test_images": True},
    ],
    ids=str,
)  # fmt: skip
def test_another_test_than_theirs_does_not_compare_with_their_number(make_run, other):
    folder = make_run("a", IMAGENET | {"model.shortcut": "C"}, **SIZE)
    write_evaluation(folder, "x", **other)
    found = tables(folder)
    for table in references.tables():
        assert ours(found[table.title]) == {}
    rest = found[NO_NUMBER]
    assert "25.00 / 8.00" in {row[3] for row in rest}


def test_other_images_than_those_of_the_training_are_named_by_their_folder(make_run):
    folder = make_run("a", IMAGENET | {"model.shortcut": "A"}, **SIZE)
    write_evaluation(folder, "same")
    write_evaluation(folder, "other", other_data=True, data={"root": "data/noisy"}, top1=0.5)
    found = tables(folder)
    assert ours(found[TEN_CROPS]) == {"ResNet-34 A, paper, Tables 2 and 3": "25.00 / 8.00"}
    (row,) = [row for row in found[NO_NUMBER] if row[3].startswith("50.00")]
    assert "of data/noisy" in row[4]


def test_what_was_not_as_in_the_training_is_said_and_not_averaged(make_run):
    other = IMAGENET | {"model.shortcut": "A"}
    folders = [make_run(f"s{s}", other | {"run.seed": s}, **SIZE) for s in range(2)]
    write_evaluation(folders[0], "1-crop", protocol="1-crop", step=800)
    fp32 = {"protocol": "1-crop", "top1": 0.5, "changed": {"optim.amp": "off"}}
    write_evaluation(folders[1], "1-crop-amp-off", **fp32, step=800)
    rows = tables(*folders)[NO_NUMBER]
    assert not any("mean of" in row[4] for row in rows)
    (line,) = [row[4] for row in rows if row[3].startswith("50.00")]
    assert line.endswith("2026-11-20, optim.amp=off")
    assert any("s1, step 800" in row[4] and "validation in training" in row[4] for row in rows)


def test_multi_scale_and_ensembles_have_their_rows(make_run):
    folder = make_run("a", IMAGENET, **SIZE)
    scales = {"protocol": "multi-scale", "scales": list(MULTI_SCALES)}
    write_evaluation(folder, "one", **scales)
    write_evaluation(folder, "six", **scales, ensemble=list("abcdef"), top1=0.8, bn_images="all")
    rows = tables(folder)["ImageNet, single model, five scales"]
    assert ours(rows) == {
        "ResNet-34 B, paper, Table 4": "25.00 / 8.00",
        "ensemble of 6, paper, Table 5": "20.00 / 8.00",
    }
    assert "ensemble of 6" in rows[-1][5]
    assert "BN statistics over all training images" in rows[-1][5]


def test_seeds_are_shown_each_and_as_mean_with_deviation(make_run):
    folders = [make_run(f"s{s}", CIFAR | {"run.seed": s}, last=8 + s) for s in range(3)]
    folders.append(make_run("other-recipe", CIFAR | {"optim.weight_decay": 0.0}, last=20))
    folders.append(make_run("half", CIFAR | {"run.seed": 9}, last=30, finished=False))
    rows = tables(*folders)[CIFAR_TABLE]
    start = next(i for i, row in enumerate(rows) if row[0] == "CIFAR ResNet-20 A")
    mean, *each = rows[start : start + 6]
    assert mean[3:6] == ("8.75", "10.00 ± 1.00 / 4.50 ± 0.50", "mean of 3 runs")
    errors = [row[4].partition(" / ")[0] for row in each]
    assert errors == ["9.00", "10.00", "11.00", "21.00", "31.00"]
    assert all(row[:4] == ("", "", "", "") for row in each)
    assert each[-1][5].startswith("half, step 4,000 of 128 images, run unfinished")


def test_of_seeds_on_other_data_the_mean_is_shown_alone(make_run):
    folders = [make_run(f"s{s}", DRAWN | {"run.seed": s}, last=8 + s, val=2000) for s in range(3)]
    (row,) = tables(*folders)[NO_NUMBER]
    assert row[3:] == ("10.00 ± 1.00 / 4.50 ± 0.50", "mean of 3 runs: s0, s1, s2")


def test_two_checkpoints_of_a_run_are_not_two_seeds(make_run):
    folder = make_run("a", IMAGENET, **SIZE)
    write_evaluation(folder, "best", step=700)
    write_evaluation(folder, "last", step=800, top1=0.74)
    rows = [row for row in tables(folder)[TEN_CROPS] if row[4]]
    assert [row[4] for row in rows] == ["25.00 / 8.00", "26.00 / 8.00"]
    assert ["step 700" in rows[0][5], "step 800" in rows[1][5]] == [True, True]


def test_other_data_never_compare_with_a_stated_number(make_run):
    found = tables(
        make_run("demo", {"model.depth": 18}, **SIZE),
        make_run("drawn", CIFAR | {"data.root": "data/drawn"}, val=2000),
        make_run("held-out", CIFAR | {"data.held_out": 5000}, val=5000, train=45_000),
    )
    for table in references.tables():
        assert ours(found[table.title]) == {}
    # The validations of other data are in the summary.
    assert [row[0] for row in found[NO_NUMBER]] == []


def test_test_images_of_a_run_with_held_out_ones_compare_with_the_paper(make_run):
    folder = make_run("a", CIFAR | {"data.held_out": 5000}, val=5000, train=45_000)
    write_evaluation(folder, "x", protocol="1-crop", images=10_000, top1=0.91, test_images=True)
    assert ours(tables(folder)[CIFAR_TABLE]) == {"CIFAR ResNet-20 A, paper, Table 6": "9.00 / 8.00"}
