"""Links, hidden names, closed archives and odd numbers of files, in every command on data sets."""

from __future__ import annotations

import os

import pytest
from container_writers import draw_images, write_folders
from imagenet_archives import jpeg, options, small_archives

from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import imagenet, stage
from pipeline.prepare.options import StageOptions
from pipeline.system import files


def test_archives_of_imagenet_may_be_symbolic_links(tmp_path):
    paths = small_archives().write(tmp_path / "far away ö")
    links = {}
    for name, path in paths.items():
        links[name] = tmp_path / f"link to {path.name}"
        links[name].symlink_to(path)
    imagenet.run(options(links, tmp_path / "linked"))
    imagenet.run(options(paths, tmp_path / "plain"))
    for split in ("train", "val"):
        linked, plain = (open_manifest(tmp_path / out, split) for out in ("linked", "plain"))
        assert linked.digest == plain.digest
        assert not any(linked.path(image).is_symlink() for image in range(len(linked)))


def test_class_folders_and_images_may_be_symbolic_links(tmp_path):
    write_folders(tmp_path / "plain" / "train", draw_images(6))
    linked = tmp_path / "linked" / "train"
    linked.mkdir(parents=True)
    (linked / "a").symlink_to(tmp_path / "plain" / "train" / "a")
    (linked / "Z é").mkdir()
    for path in (tmp_path / "plain" / "train" / "Z é").iterdir():
        (linked / "Z é" / path.name).symlink_to(path)
    digest = open_manifest(tmp_path / "plain", "train").digest
    assert open_manifest(tmp_path / "linked", "train").digest == digest
    stage.run(StageOptions(tmp_path / "linked", tmp_path / "local"))
    assert open_manifest(tmp_path / "local", "train").digest == digest
    assert not any(path.is_symlink() for path in (tmp_path / "local").rglob("*"))


def test_an_image_added_behind_a_linked_class_folder_is_seen(tmp_path):
    write_folders(tmp_path / "far", draw_images(4, ("a",)))
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a").symlink_to(tmp_path / "far" / "a")
    assert len(open_manifest(tmp_path / "data", "train")) == 4
    (tmp_path / "far" / "a" / "new.jpg").write_bytes(jpeg(1))
    assert len(open_manifest(tmp_path / "data", "train")) == 5


@pytest.mark.parametrize("count", [1, 203])
def test_any_number_of_files_is_staged(tmp_path, count):
    (tmp_path / "from" / "train" / "a").mkdir(parents=True)
    for number in range(count):
        (tmp_path / "from" / "train" / "a" / f"{number}.JPEG").write_bytes(jpeg(number % 7))
    stage.run(StageOptions(tmp_path / "from", tmp_path / "to"))
    copy = open_manifest(tmp_path / "to", "train")
    assert (len(copy), copy.digest) == (count, open_manifest(tmp_path / "from", "train").digest)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_what_imagenet_may_not_read_or_write_is_named(unprivileged, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    folder, drop_rights = unprivileged
    paths = small_archives().write(folder / "archives")
    imagenet.run(options(paths, tmp_path / "warm"))  # imports what another user may not read
    out = folder / "out"
    out.mkdir()
    for closed in (*paths.values(), out):
        out.chmod(0o777)
        wanted = options(paths, out)
        closed.chmod(0)
        drop_rights()
        try:
            with pytest.raises(ValueError, match="Permission denied") as caught:
                imagenet.run(wanted)
        finally:
            os.seteuid(0)
        assert str(closed) in str(caught.value)
        closed.chmod(0o755)
    imagenet.run(options(paths, out))
