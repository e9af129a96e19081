"""Pictures are rank 0's alone, and so nothing that goes wrong with them may end a run."""

import json

import jobs


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_not_the_run(small_data, tmp_path):
    program = (
        "import sys, pipeline.showing as s\n"
        "def broken(*_): raise ValueError('no such colour')\n"
        "s._pixels = broken\n"
        "from pipeline.train import main; main(sys.argv[1:])"
    )
    options = [*jobs.small_settings(small_data, tmp_path), "--schedule.epochs=1",
               "--schedule.drop_epochs=[]"]  # fmt: skip
    ranks = jobs.run(["-c", program, *options])
    assert ranks.codes == [0], ranks.text
    assert "warning: a picture for TensorBoard is left out: no such colour" in ranks.text
    last = (tmp_path / "test" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "done"
