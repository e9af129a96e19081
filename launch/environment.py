"""Sets up the environment that every command runs in: `python3 -m launch.environment`.

The Makefile calls it first, under the system's Python, so it uses the standard library only. It
checks the machine, makes `.venv`, installs PyTorch, DALI and this project from the registry with
pip, and builds Horovod, unless ENGINE=torch says that torch.distributed is to connect the ranks: it
comes with PyTorch. When all of that is done it does nothing; after an interrupted installation it
starts over. What pip says is shown only if it fails. It exits with 2 after one sentence for each
thing that is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

# The PyTorch that the project is tested with; `make train TORCH=torch==2.11.0` takes another.
TORCH = "torch==2.13.0"
ENGINES = ("horovod", "torch")
# What installs this project without fetching it each time (pyproject.toml).
BUILD_BACKEND = "setuptools>=77"
OLDEST_PYTHON = (3, 10)
# Horovod's release does not run on a newer one; PyTorch, DALI and numba have wheels up to 3.14.
NEWEST_PYTHON = {"horovod": (3, 12), "torch": (3, 14)}
# The set-up is done again when one of these changes.
SOURCES = ("setup.py", "pyproject.toml", "launch/environment.py", "launch/horovod_build.py")


class SetupError(Exception):
    """The set-up cannot continue; each line of the message is one sentence for the user."""


def missing(
    path: str,
    headers: Path,
    engine: str = "horovod",
    version: tuple[int, int] = sys.version_info[:2],
    has_ensurepip: bool = importlib.util.find_spec("ensurepip") is not None,
) -> list[str]:
    """What the machine does not have, one sentence each, with the Debian package that has it.

    `path` is searched for programs and `headers` for Python.h, which only Horovod's build needs;
    `version` and `has_ensurepip` describe the Python that runs this.
    """
    absent = []
    newest = NEWEST_PYTHON[engine]
    if not OLDEST_PYTHON <= version <= newest:
        torch_runs = newest < version <= NEWEST_PYTHON["torch"]
        other = ", or do without Horovod by ENGINE=torch" if torch_runs else ""
        absent.append(
            f"Python {version[0]}.{version[1]} is outside 3.10 to 3.{newest[1]}: name another one "
            f"with `make PYTHON=python3.11`, on Debian 12 from the Debian package python3{other}."
        )
    if not has_ensurepip:
        absent.append(
            "Python's venv module cannot make an environment: install the Debian package "
            "python3-venv."
        )
    if engine == "horovod":
        absent += _missing_for_a_build(path, headers)
    return absent


def _missing_for_a_build(path: str, headers: Path) -> list[str]:
    without = ", or do without Horovod by ENGINE=torch."
    absent = []
    if not (headers / "Python.h").is_file():
        absent.append(
            f"Python.h is not in {headers}: install the Debian package python3-dev{without}"
        )
    for program in ("g++", "make"):
        if shutil.which(program, path=path) is None:
            absent.append(
                f"the program {program} is not on the PATH: install the Debian package "
                f"{program}{without}"
            )
    return absent


def dali_extra(cuda: str | None) -> str:
    """The extra of setup.py with the DALI for a PyTorch built for `cuda` ("13.0"; None: CPU).

    Both of DALI's wheels run without a GPU, with identical pixels; CPU builds get the smaller one.
    Raises SetupError for a CUDA version that DALI has no wheel for.
    """
    extras = {None: "gpu", "13": "gpu", "12": "gpu-cuda12"}
    major = cuda.split(".")[0] if cuda else None
    if major not in extras:
        raise SetupError(
            f"PyTorch is built for CUDA {cuda}, but DALI has wheels for CUDA 12 and 13 only: "
            f"choose another PyTorch, as in `make train TORCH={TORCH}`."
        )
    return extras[major]


def digest(root: Path, torch: str) -> str:
    """What identifies a finished set-up: its files, the requested PyTorch, the Python."""
    files = [(root / name).read_bytes() for name in SOURCES]
    return hashlib.sha256(b"\0".join([torch.encode(), sys.version.encode(), *files])).hexdigest()


class Environment:
    """The virtual environment of a checkout; small files inside it say how far its set-up is.

    Horovod comes last and has a file of its own: with it the environment serves both engines,
    without it `torch`, and a later set-up for `horovod` adds it.
    """

    def __init__(self, root: Path, torch: str, engine: str = "horovod") -> None:
        if engine not in ENGINES:
            raise SetupError(f"ENGINE={engine} must be {' or '.join(ENGINES)}.")
        self.root = root
        self.torch = torch
        self.engine = engine
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self._ready = self.venv / ".ready"
        self._horovod_ready = self.venv / ".ready-horovod"
        self._made_for = self.venv / ".made-for"

    def is_ready(self) -> bool:
        """Whether a set-up from exactly these files has finished, as far as the engine needs it."""
        needed = [self._ready, *([self._horovod_ready] if self.engine == "horovod" else [])]
        finished = digest(self.root, self.torch)
        return self.is_whole() and all(
            path.is_file() and path.read_text() == finished for path in needed
        )

    def set_up(self) -> None:
        """Finishes the set-up; raises SetupError."""
        if not Environment(self.root, self.torch, "torch").is_ready():
            self._install()
        if not self.is_ready():
            build = [str(self.python), "-m", "launch.horovod_build", "--install"]
            self.stage("Horovod", *build, speaks=True)
            self._horovod_ready.write_text(digest(self.root, self.torch))

    def _install(self) -> None:
        """Everything but Horovod."""
        self.make_venv()
        pip = [str(self.python), "-m", "pip", "install", "-q"]
        self.stage(f"PyTorch ({self.torch})", *pip, self.torch, BUILD_BACKEND)
        extra = dali_extra(self._torch_cuda())
        project = f"{self.root}[{extra},test]"
        name = f"DALI (extra {extra}), this project and its tools"
        self.stage(name, *pip, "--no-build-isolation", "--editable", project)
        self._ready.write_text(digest(self.root, self.torch))

    def is_whole(self) -> bool:
        """Whether `.venv` is for this PyTorch and Python, and intact as far as its set-up got.

        DALI's two wheels share their files, so that a change of PyTorch never reuses one.
        """
        # An earlier set-up left `.installing` when it was cut short.
        if not self._made_for.is_file() or (self.venv / ".installing").exists():
            return False
        return self._made_for.read_text() == self._purpose()

    def make_venv(self) -> None:
        """Makes a new `.venv` unless the set-up can continue with the one that is there."""
        if self.is_whole():
            return
        _say(f"Python environment {self.venv}")
        command = [sys.executable, "-m", "venv", "--clear", str(self.venv)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetupError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()}")
        self._made_for.write_text(self._purpose())

    def stage(self, name: str, *command: str, speaks: bool = False) -> None:
        """Runs one installation; SetupError if it fails, below what it has said.

        One that `speaks` says on stderr what it does, which is shown as it comes.

        If it is interrupted, a package may be there in part, which pip would take for installed:
        without the file `.made-for` the next set-up starts from an empty environment.
        """
        _say(name)
        self._made_for.unlink()
        if not succeeds(command, self.root, speaks):
            raise SetupError(f"the set-up stopped at {name}: the reason is above.")
        self._made_for.write_text(self._purpose())

    def _purpose(self) -> str:
        return f"{self.torch}, Python {sys.version}"

    def _torch_cuda(self) -> str | None:
        """The CUDA version that the installed PyTorch is built for, None for CPU."""
        command = [str(self.python), "-c", "import torch; print(torch.version.cuda or '')"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetupError(f"{self.torch} cannot be imported: {done.stderr.strip()}")
        return done.stdout.strip() or None


def succeeds(command: Sequence[str], folder: Path | None = None, speaks: bool = False) -> bool:
    """Runs a program of the set-up in `folder` (None: this one); whether it ended with 0.

    What it says is shown on stderr only if it did not: pip warns of much that is no fault. Of one
    that `speaks`, stderr is shown as it comes, and stdout never.
    """
    if speaks:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
        return done.returncode == 0
    heard = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if heard.returncode != 0:
        print(heard.stdout.decode(errors="replace"), end="", file=sys.stderr, flush=True)
    return heard.returncode == 0


def _say(line: str) -> None:
    print(f"set-up: {line}", flush=True)


def exit_code(work: Callable[[], None]) -> int:
    """Runs a part of the set-up: 0, or 2 after sentences on why it failed."""
    try:
        work()
    except SetupError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def main() -> None:
    """Sets this checkout up unless that is done; raises SetupError."""
    root = Path(__file__).resolve().parents[1]
    engine = os.environ.get("ENGINE") or "horovod"
    environment = Environment(root, os.environ.get("TORCH") or TORCH, engine)
    if environment.is_ready():
        return
    absent = missing(os.environ.get("PATH", ""), Path(sysconfig.get_path("include")), engine)
    if absent:
        raise SetupError("\n".join(absent))
    with open(root / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make train` and `make test` at the same time
        if not environment.is_ready():
            environment.set_up()


if __name__ == "__main__":
    sys.exit(exit_code(main))
