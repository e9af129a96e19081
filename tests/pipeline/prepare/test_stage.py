"""A staged copy is the same data: whole, found again at once, safe against kills and rivals."""

from __future__ import annotations

import logging
import os
import shutil
import signal

import jobs
import numpy as np
import pytest
from file_limit import files_up_to
from imagenet_archives import jpeg, killed_at_file, tar_of, visible_files

from pipeline.config import ConfigError, DataConfig
from pipeline.data.index.manifest import cached_manifest, open_manifest
from pipeline.data.normalisation import Normalisation
from pipeline.data.statistics import facts_of, normalisation_of, save, statistics_places
from pipeline.prepare import files, stage, verify
from pipeline.prepare.options import StageOptions, VerifyOptions
from pipeline.system import console


@pytest.fixture
def source(small_data, tmp_path):
    """A data set with all that may lie about in one."""
    source = tmp_path / "shared disk" / "images"
    shutil.copytree(small_data, source, symlinks=True, ignore=shutil.ignore_patterns(".trainyard"))
    first = sorted(os.listdir(source / "train"))[0]
    odd = source / "train" / "klasse mit ä und leer"
    odd.mkdir()
    shutil.copy(next((source / "train" / first).iterdir()), odd / "bild ö 1.JPEG")
    (odd / "linked.JPEG").symlink_to(odd / "bild ö 1.JPEG")
    (odd / "._bild ö 1.JPEG").write_bytes(b"dotfile")
    (source / "synset_words.txt").write_text("a b\n")
    return source


def test_the_copy_is_the_same_data_and_its_headers_are_not_read_again(source, tmp_path, capsys):
    hashes = {split: open_manifest(source, split).digest for split in ("train", "val")}
    before = set(os.listdir(tmp_path))
    stage.run(StageOptions(source, tmp_path / "local"))
    assert set(os.listdir(tmp_path)) == {*before, "local"}
    assert visible_files(tmp_path / "local") == visible_files(source)
    assert "synset_words.txt" in visible_files(tmp_path / "local")
    assert not (tmp_path / "local/train/klasse mit ä und leer/linked.JPEG").is_symlink()
    assert f"{source} lies in {tmp_path / 'local'}: 84 files" in capsys.readouterr().out
    for split, digest in hashes.items():
        copied = source / ".trainyard" / f"{split}.arrow"
        mine = tmp_path / "local" / ".trainyard" / f"{split}.arrow"
        assert copied.read_bytes() == mine.read_bytes()  # a scan would have written another
        assert open_manifest(tmp_path / "local", split).digest == digest
        assert copied.read_bytes() == mine.read_bytes()


def test_the_manifests_of_a_cache_folder_are_copied_and_a_run_with_one_finds_the_copys_own(
    source, tmp_path, caplog
):
    cache, local = tmp_path / "cache", tmp_path / "local"
    digest = open_manifest(source, "train", cache).digest
    stage.run(StageOptions(source, local, cache_dir=cache))
    assert not (source / ".trainyard").exists()
    for split in ("train", "val"):
        theirs, mine = next(cache.glob(f"*-{split}.arrow")), local / f".trainyard/{split}.arrow"
        assert mine.stat().st_mtime_ns == theirs.stat().st_mtime_ns
    before = set(cache.iterdir())
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert open_manifest(local, "train", cache).digest == digest
    assert cached_manifest(local, "val", cache) is not None
    stage.run(StageOptions(local, tmp_path / "second", cache_dir=cache))
    assert open_manifest(tmp_path / "second", "train", cache).digest == digest
    assert "scanned" not in caplog.text
    assert set(cache.iterdir()) == before


def test_the_copy_brings_the_means_of_its_images_along(source, tmp_path):
    config = DataConfig(root=str(source), image_size=16, val_resize=16, mean="pixel")
    one, digest = np.ones(3, np.float32), open_manifest(source, "train").digest
    found = Normalisation(one, one, np.ones((16, 16, 3), np.float32), np.eye(3))
    save(statistics_places(config)[0], found, 50, facts_of(config, digest))
    stage.run(StageOptions(source, tmp_path / "local"))
    shutil.rmtree(source)
    staged = DataConfig(root=str(tmp_path / "local"), image_size=16, val_resize=16, mean="pixel")
    assert normalisation_of(staged, open_manifest(tmp_path / "local", "train")).image.sum() == 768


def test_an_old_manifest_of_a_copy_is_not_used_nor_changed(source, tmp_path):
    local, cache = tmp_path / "local", tmp_path / "cache"
    stage.run(StageOptions(source, local))
    old = local / ".trainyard" / "train.arrow"
    content = old.read_bytes()
    next((local / "train").rglob("*.JPEG")).unlink()
    now = open_manifest(local, "train", cache)
    assert len(now) == len(open_manifest(source, "train")) - 1
    assert (old.read_bytes(), len(list(cache.iterdir()))) == (content, 1)


def test_a_second_call_copies_nothing_and_a_cleaned_disk_is_filled_again(source, tmp_path, capsys):
    options = StageOptions(source, tmp_path / "local")
    stage.run(options)
    times = {p: p.stat().st_ctime_ns for p in (tmp_path / "local").rglob("*.JPEG")}
    capsys.readouterr()
    stage.run(options)
    assert capsys.readouterr().out == f"all of {source} is already in {tmp_path / 'local'}\n"
    gone = sorted(times)[3]
    gone.rename(gone.with_name("of nobody.JPEG"))
    stage.run(options)
    assert visible_files(tmp_path / "local") == visible_files(source)
    now = {p: p.stat().st_ctime_ns for p in times}
    assert [p for p in times if now[p] != times[p]] == [gone]


def test_containers_are_staged_and_not_indexed_again(tmp_path):
    source, local = tmp_path / "source", tmp_path / "local"
    (source / "train").mkdir(parents=True)
    images = {f"{name}/{i}.JPEG": jpeg(i) for name in ("a", "b") for i in range(3)}
    (source / "train" / "shard-000000.tar").write_bytes(tar_of(images))
    manifest = open_manifest(source, "train")
    stage.run(StageOptions(source, local))
    index = (local / ".trainyard" / "train.arrow").stat().st_ino
    copy = open_manifest(local, "train")
    assert (copy.digest, len(copy)) == (manifest.digest, 6)
    assert (local / ".trainyard" / "train.arrow").stat().st_ino == index
    assert (copy.read(4) == manifest.read(4)).all()


VALIDATION = "has no folder val, and there is a folder validation; rename it to val, or link it: ln"


def test_a_split_under_another_name_is_warned_of_once(source, tmp_path, caplog):
    (source / "val").rename(source / "validation")
    for run in (
        lambda: verify.run(VerifyOptions(source, report=tmp_path / "r.jsonl")),
        lambda: stage.run(StageOptions(source, tmp_path / "local")),
        lambda: stage.run(StageOptions(source, tmp_path / "local")),
    ):
        caplog.clear()
        run()
        assert caplog.text.count(f"the data directory {source} {VALIDATION}") == 1
        assert caplog.text.count("there is a folder") == 1
    (source / "train").rename(source / "training")
    wanted = (
        f"has neither a folder train nor val: .* has no folder train, .* training; .*{VALIDATION}"
    )
    with pytest.raises(ConfigError, match=wanted):
        stage.run(StageOptions(source, tmp_path / "local"))


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    source, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(console, "LINE_SEC", -1.0)
    stage.run(StageOptions(source, tmp_path / "local", workers=1))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 84
    assert lines[0].startswith(f"copying to {tmp_path / 'local'}: 1 of 84 files, 0.00 of 0.00 GB")
    assert " 84 of 84 files" in lines[-1]


def test_a_killed_copy_goes_on_and_keeps_what_it_had(source, tmp_path):
    local = tmp_path / "local"
    argv = ["stage", f"--from={source}", f"--to={local}", "--workers=1"]
    data_hash = open_manifest(source, "train").digest
    open_manifest(source, "val")
    assert killed_at_file(32, *argv) == -signal.SIGKILL
    kept = {p: p.stat().st_ino for p in local.rglob("[!.]*.JPEG")}
    assert len(kept) == 31 - 3  # the others: the mark, demo.json, synset_words.txt
    stage.run(StageOptions(source, local))
    assert visible_files(local) == visible_files(source)
    assert {p: p.stat().st_ino for p in kept} == kept
    assert open_manifest(local, "train").digest == data_hash
    assert sorted(p.name for p in (local / ".trainyard").iterdir()) == [
        "lock", "staged.json", "train.arrow", "val.arrow",
    ]  # fmt: skip


def test_processes_of_one_node_do_not_fight(source, tmp_path):
    argv = ["stage", f"--from={source}", f"--to={tmp_path / 'local'}"]
    rivals = [jobs.start(["-m", "pipeline.prepare", *argv]) for _ in range(2)]
    said = [rival.wait() for rival in rivals]
    assert [rival.codes for rival in said] == [[0], [0]]
    assert sum("files," in rival.text for rival in said) == 1
    assert sum("is already in" in rival.text for rival in said) == 1
    assert visible_files(tmp_path / "local") == visible_files(source)


def test_a_file_that_exceeds_the_room_is_named_and_the_copy_can_go_on(source, tmp_path):
    local = tmp_path / "local"
    for split in ("train", "val"):
        open_manifest(source, split)
    with (
        files_up_to(4000),
        pytest.raises(ConfigError, match=r"does not fit \(File too large\): ma"),
    ):
        stage.run(StageOptions(source, local))
    wanted = visible_files(source)
    assert visible_files(local).items() < wanted.items()
    stage.run(StageOptions(source, local))
    assert visible_files(local) == wanted


def test_too_little_room_is_said_before_anything_is_copied(source, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_RESERVE_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match=r"has \d+\.\d\d GB free, but \d+\.\d\d GB are needed"):
        stage.run(StageOptions(source, tmp_path / "local"))
    assert visible_files(tmp_path / "local") == {}


def test_a_copy_of_other_data_and_a_foreign_folder_are_refused(source, tmp_path):
    stage.run(StageOptions(source, tmp_path / "local"))
    next((source / "val").rglob("*.JPEG")).unlink()
    with pytest.raises(ConfigError, match=r"holds a copy of other data \(train .*remove it or"):
        stage.run(StageOptions(source, tmp_path / "local"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"already holds thesis.tex, which is not a copy"):
        stage.run(StageOptions(source, tmp_path / "home"))
    assert visible_files(tmp_path / "home") == {"thesis.tex": b"mine"}


def test_what_cannot_be_copied_is_named(source, tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            stage.run(StageOptions(source, tmp_path / "local"))

    (source / "train" / "gone.JPEG").symlink_to(tmp_path / "nothing")
    refused("gone.JPEG cannot be read: No such file")
    (source / "train" / "gone.JPEG").unlink()
    (source / "val" / "loop").symlink_to(source / "val")
    refused("loop")
    (source / "val" / "loop").unlink()
    (source / "more").mkdir()
    (source / "more" / "loop").symlink_to(source)
    refused("loop is a link to a folder above it; remove it")
    (source / "more" / "loop").unlink()
    os.mkfifo(source / "pipe")
    refused("pipe is neither a file nor a folder")


def test_a_file_without_permission_to_read_is_named(source, tmp_path, nobody):
    for split in ("train", "val"):
        open_manifest(source, split)
    secret = sorted((source / "train").rglob("*.JPEG"))[0]
    secret.chmod(0)
    (tmp_path / "local").mkdir()
    (tmp_path / "local").chmod(0o777)
    with nobody(), pytest.raises(ConfigError, match=f"{secret} cannot be read: Permission denied"):
        stage.run(StageOptions(source, tmp_path / "local"))
