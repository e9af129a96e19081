"""The wheel, in an environment that has what it asks for and nothing else, outside any checkout."""

from __future__ import annotations

import email
import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jobs
import pytest
from jobs import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.system.version import VERSION

pytestmark = [pytest.mark.package, pytest.mark.slow]

EXTRAS = ("gpu", "export")
TINY = (
    "--config", "configs/demo.yaml", "--data.global_batch_size=16", "--data.local_batch_size=8",
    "--schedule.epochs=1", "--schedule.warmup_epochs=0", "--schedule.drop_epochs=[]",
    "--run.device=cpu", "--run.expect_top1=null", "--run.log_every_steps=1",
)  # fmt: skip
PATIENCE_SEC = 400.0
# As root nothing is forbidden: the folder is mounted read-only, for this process alone.
_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds the `sdist` or `wheel` of the sources in a folder as pip does; returns it."""
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the checkout, without what lies about in it."""
    folder = tmp_path_factory.mktemp("source") / "trainyard"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (REPOSITORY / name).is_file(), names.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    return build("sdist", source, source.parent / "sdist")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source, source.parent / "wheel")


def test_the_wheel_has_what_the_commands_need_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    tops = {name.partition("/")[0] for name in held}
    assert tops == {"pipeline", "launch", f"trainyard-{VERSION}.dist-info"}
    for folder, place in (("configs", "pipeline/configs"), ("slurm", "launch/slurm/scripts")):
        files = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        for path in files:
            name = f"{place}/{path.relative_to(REPOSITORY / folder)}"
            assert held[name] == path.read_bytes(), name
        assert sum(name.startswith(f"{place}/") for name in held) == len(files)
    assert {"pipeline/py.typed", "launch/py.typed"} <= held.keys()
    assert not [name for name in held if "test" in Path(name).name and name.endswith(".py")]
    info = f"trainyard-{VERSION}.dist-info"
    assert held[f"{info}/licenses/LICENSE"] == (REPOSITORY / "LICENSE").read_bytes()
    about = email.message_from_bytes(held[f"{info}/METADATA"])
    assert (about["Version"], about["License-Expression"]) == (VERSION, "Apache-2.0")
    assert b"trainyard = launch.command:main" in held[f"{info}/entry_points.txt"]


def test_the_sdist_makes_the_same_wheel_and_has_the_tests(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / f"trainyard-{VERSION}"
    for name in ("tests/jobs.py", "tests/conftest.py", "docs/conf.py", "Makefile", "LICENSE"):
        assert (folder / name).read_bytes() == (REPOSITORY / name).read_bytes()
    again = build("wheel", folder, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {n: one.read(n) for n in one.namelist()} == {
            n: other.read(n) for n in other.namelist()
        }


def asked_for(wheel: Path) -> set[str]:
    """The packages that the wheel and its `EXTRAS` ask for, and those that these do."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"trainyard-{VERSION}.dist-info/METADATA")
    found: set[str] = set()
    asked = email.message_from_bytes(text).get_all("Requires-Dist", [])
    open_: list[tuple[Requirement, tuple[str, ...]]] = [(Requirement(one), EXTRAS) for one in asked]
    while open_:
        wanted, extras = open_.pop()
        applies = wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        name = canonicalize_name(wanted.name)
        if applies and name not in found:
            found.add(name)
            needs = metadata.requires(name) or []
            open_ += [(Requirement(need), tuple(wanted.extras)) for need in needs]
    return found


class Place:
    """An environment with the wheel, and an empty folder to work in."""

    def __init__(self, venv: Path, folder: Path) -> None:
        self.venv = venv
        self.folder = folder
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = venv / "lib" / version / "site-packages"

    def run(self, *command: str | Path, code: int = 0) -> str:
        """What a command says, which must end with `code`."""
        env = jobs.environment(HOME=str(self.folder / "home"))
        for name in ("PYTHONPATH", "XDG_CACHE_HOME", "VIRTUAL_ENV"):
            env.pop(name, None)
        env["PATH"] = f"{self.venv / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=env, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_SEC,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def files(self) -> set[Path]:
        """What lies in the package's own folders."""
        return {path for top in ("pipeline", "launch") for path in (self.packages / top).rglob("*")}


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The wheel, installed by pip beside links to what it asks for, and demo data drawn by it.

    Links, since to fetch PyTorch anew takes minutes; pip checks each bound on what they lead to.
    """
    top = tmp_path_factory.mktemp("place")
    place = Place(top / "venv", top / "work")
    (place.folder / "home").mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", place.venv], check=True)
    pip = [place.venv / "bin/python", "-m", "pip"]
    place.run(*pip, "uninstall", "-q", "-y", "setuptools")  # older than what PyTorch asks for
    for name in asked_for(wheel):
        for path in metadata.files(name) or []:
            entry, target = path.parts[0], Path(str(path.locate())).parents[len(path.parts) - 2]
            if len(path.parts) == 1:
                target = Path(str(path.locate()))
            if entry not in ("..", "__pycache__") and not (place.packages / entry).exists():
                (place.packages / entry).symlink_to(target)
    asked = f"{wheel}[{','.join(EXTRAS)}]"
    place.run(*pip, "install", "-q", "--no-index", asked)
    place.run("trainyard", "prepare", "demo", "--out=data/demo", "--train=40", "--val=20")
    return place


def test_an_installed_package_says_its_version_and_finds_its_files(place: Place) -> None:
    assert place.run("trainyard", "--version") == f"trainyard {VERSION}\n"
    base = place.run("trainyard", "train", "--config=configs/mini/plain-20.yaml", "--print-config")
    assert f"taken from {place.packages}/pipeline/configs/mini/plain-20.yaml\n" in base
    script = place.run("trainyard", "slurm", "--script", "resnet152_64gpu")
    assert script == (REPOSITORY / "slurm/resnet152_64gpu.sh").read_text()
    assert "unknown" in place.run(
        "python", "-c", "from pipeline.system.machine import versions; print(versions()['commit'])"
    )


def test_it_trains_from_a_folder_that_it_may_not_write_to(place: Place) -> None:
    command = ["trainyard", "train", *TINY, "--run.name=alone"]
    before = place.files()
    if os.geteuid() == 0:
        command = ["unshare", "-m", "sh", "-c", _READ_ONLY, str(place.packages), *command]
        if subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
            pytest.skip("root may not mount here")
    else:
        subprocess.run(["chmod", "-R", "a-w", place.packages], check=True)
    try:
        said = place.run(*command)
    finally:
        if os.geteuid() != 0:
            subprocess.run(["chmod", "-R", "u+w", place.packages], check=True)
    assert "finished: top-1 " in said and "warning" not in said
    assert place.files() == before


def test_ranks_of_torchrun_train_without_horovod_and_the_rest_reads_their_run(
    place: Place,
) -> None:
    assert "horovod" not in asked_names(place)
    ranks = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    torchrun = ["python", "-m", "torch.distributed.run", *ranks]  # the links have no scripts
    place.run(*torchrun, "-m", "pipeline.train", *TINY, "--run.name=two")
    best = "runs/two/checkpoints/best.pt"
    assert "(20 images)" in (place.folder / "runs/two/log.txt").read_text()
    assert "two " in place.run("trainyard", "runs")
    place.run("trainyard", "report", "runs/two")
    assert (place.folder / "runs/report/index.html").is_file()
    assert "top-1 " in place.run(
        "trainyard", "evaluate", f"--checkpoint={best}", "--run.device=cpu"
    )
    place.run("trainyard", "export", f"--checkpoint={best}", "--out=two.safetensors")
    assert (place.folder / "two.safetensors").is_file()


def asked_names(place: Place) -> str:
    """The packages of the environment."""
    return place.run("python", "-m", "pip", "list", "--format=freeze").lower()


def test_in_a_folder_with_another_package_of_the_name_it_says_so(place: Place) -> None:
    other = place.folder / "other"
    (other / "pipeline").mkdir(parents=True)
    (other / "pipeline/__init__.py").touch()
    said = place.run("sh", "-c", "cd other && trainyard runs", code=2)
    assert said.startswith(
        f"error: {other}/pipeline/__init__.py would be taken for trainyard's own"
    )
