"""Everything of a recipe of today at once: stopped, killed and continued by other ranks, with the
bits of a run that nobody interrupted."""

import jobs
from jobs import SABOTEUR, resumable
from one_process import train_here
from run_files import checkpoint_steps, differences, metrics, newest_checkpoint

RECIPE = (
    "--schedule.rule=cosine", "--schedule.end_factor=0.01",
    "--schedule.warmup_epochs=0.5", "--optim.nesterov=true", "--optim.clip_norm=1",
    "--optim.label_smoothing=0.1", "--optim.ema_decay=0.9", "--optim.ema_every_steps=2",
    "--optim.class_weights=balanced", "--data.mixup=0.2", "--data.cutmix=1",
    "--data.erase=0.5", "--data.augment=trivial", "--data.repeats=2",
    "--data.image_sizes={0: 24, 1: 28, 2: 32}", "--data.val_size=36", "--data.val_resize=40",
)  # fmt: skip
"""On `jobs.RESUMABLE`: 19 steps, of which sizes begin with the 7th and the 13th."""

PARTS = ("step", "position", "model", "momentum", "ema", "history")


def test_ranks_of_both_engines_and_one_that_goes_on_have_the_bits_of_one_alone(
    small_data, tmp_path
):
    settings = [*resumable(small_data, tmp_path), *RECIPE]
    first = jobs.run([str(SABOTEUR), "kill-step:9:1", *settings], ranks=2, engine="horovod")
    assert 0 not in first.codes, first.text
    assert checkpoint_steps(tmp_path / "test")[-1] in (7, 8), first.text
    second = jobs.run([str(SABOTEUR), "stop-step:14:0", *settings], ranks=2, engine="torch")
    assert second.codes == [75, 75], second.text
    one_rank = (*jobs.RESUMABLE, "--data.local_batch_size=4", *RECIPE)
    run = train_here(small_data, tmp_path, *one_rank)
    alone = train_here(small_data, tmp_path / "alone", *one_rank)

    found, wanted = newest_checkpoint(run), newest_checkpoint(alone)
    for part in PARTS:
        assert differences(found[part], wanted[part]) == [], part
    ours, theirs = (
        [line for line in metrics(one) if line["event"] in ("train", "val")] for one in (run, alone)
    )
    assert ours == theirs
    train, val = ([line for line in ours if line["event"] == event] for event in ("train", "val"))
    assert [line["image_size"] for line in train] == [24, 24, 28, 28, 32, 32, 32]
    assert len(val) == 3 and all(0 < line["ema_top1"] < 1 for line in val)
