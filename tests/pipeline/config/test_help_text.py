"""What `--help` of every command says about its options, in the words of who types them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import jobs
import pytest

from pipeline.config.help import metavar_of, shown
from pipeline.prepare.options import OPTIONS

COMMANDS = [
    "train", "evaluate", "predict", "export", "report", "runs", "benchmark loader",
    *[f"prepare {name}" for name in OPTIONS],
]  # fmt: skip


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """On one line, as where lines break is the terminal's affair."""
    module, *name = command.split()
    module += "" if module == "predict" else ".__main__"
    with pytest.raises(SystemExit) as end:
        jobs.command_module(f"pipeline.{module}").main([*name, "--help"])
    assert end.value.code in (0, None)
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_no_names_of_pythons_types(command, capsys):
    text = help_of(command, capsys)
    noise = ("<class '", "Optional[", "Literal[", "Union[", "type:", "| null", "tuple[", "ITEM")
    assert not [word for word in (*noise, "==", "default: False") if word in text], text


def test_options_say_what_form_their_value_has_and_which_default(capsys):
    text = help_of("prepare mean", capsys)
    assert "--train-crop {random_resized_crop,scale_jitter} data.train_crop of" in text
    assert "--area [X,X] data.area of the training; null: that of --config, or the " in text
    assert "TFRecord or *.rec. (required) --cache-dir PATH Folder of the manifests, as" in text
    assert "--workers N Threads that read and decode; 0: one for each core. (default: 0)" in text
    text = help_of("train", capsys)
    assert "random_resized_crop: least and greatest share of the image's area. (default: [" in text
    assert re.search(r"--data.flip \{true,false\} Mirror half [^(]+ \(default: true\)", text)


def test_settings_that_a_checkpoint_brings_along_are_explained(capsys):
    text = help_of("evaluate", capsys)
    wanted = "--data.val_resize N Shorter side in pixels before the centre crop of validation. "
    assert wanted + "(default: as stored)" in text


@pytest.mark.parametrize(
    ("kind", "metavar"),
    [
        (int, "N"), (float | None, "X"), (Path | None, "PATH"), (str, None), (int | str, None),
        (Literal["a", "b"] | None, "{a,b}"), (tuple[int, int] | None, "[N,N]"),
        (tuple[float, ...], "[X,...]"), (None, None),
    ],
    ids=str,
)  # fmt: skip
def test_a_type_is_shown_as_the_form_of_its_value(kind, metavar):
    assert metavar_of(kind) == metavar


def test_a_default_is_shown_as_one_would_write_it():
    values = (None, True, (0.08, 1.0), [], "a", Path("x/y"))
    assert [shown(value) for value in values] == ["null", "true", "[0.08,1.0]", "[]", "a", "x/y"]
