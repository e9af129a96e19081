"""What classes are called by people."""

from __future__ import annotations

import logging

from pipeline.data.classes import class_words


def test_words_are_those_that_prepare_imagenet_keeps(tmp_path):
    assert class_words(tmp_path) == class_words(tmp_path / "none") == {}
    lines = "n01 tench, Tinca tinca\nn02 goldfish \n\nn03\n"
    (tmp_path / "synset_words.txt").write_text(lines)
    assert class_words(tmp_path) == {"n01": "tench, Tinca tinca", "n02": "goldfish"}
    assert class_words(tmp_path / "synset_words.txt") == {}  # of CIFAR-10 the root may be a file


def test_words_that_cannot_be_read_cost_a_warning_and_no_result(tmp_path, caplog):
    (tmp_path / "synset_words.txt").write_bytes(b"\xff\xfe")
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        assert class_words(tmp_path) == {}
    assert "synset_words.txt cannot be read ('utf-8' codec" in caplog.text
    assert "remove it or fix it" in caplog.text
