"""The batch scripts: clean shell, short, and one call into launch/ each."""

import shutil
import subprocess
from pathlib import Path

import pytest
from jobs import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))

OTHERS = [REPOSITORY / name for name in (".ci/run", "containers/install.sh")]
OTHERS.append(REPOSITORY / "tests" / "launch" / "apptainer.sh")


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="needs the Debian package shellcheck"
)
@pytest.mark.parametrize("script", [*SCRIPTS, *OTHERS], ids=lambda s: s.name)
def test_shellcheck_finds_nothing(script: Path):
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_a_script_ends_by_becoming_the_launcher(script: Path):
    last = script.read_text().splitlines()[-1]
    assert last.startswith("exec python -m launch.slurm ") and last.endswith(' "$@"')


@pytest.mark.parametrize("name", ["resnet152_64gpu", "resnet50_8gpu"])
def test_trainings_are_warned_before_the_time_limit_and_keep_their_log(name: str):
    text = (REPOSITORY / "slurm" / f"{name}.sh").read_text()
    for directive in ("--signal=B:USR1@300", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {directive}\n" in text


def test_the_script_for_64_gpus_asks_for_the_ranks_of_its_configuration():
    from pipeline.config.reading import load_config

    text = (REPOSITORY / "slurm" / "resnet152_64gpu.sh").read_text()
    nodes, ranks = (
        int(text.partition(f"#SBATCH --{option}=")[2].partition("\n")[0])
        for option in ("nodes", "ntasks-per-node")
    )
    config = load_config(["--config", str(REPOSITORY / "configs" / "resnet152_64gpu.yaml")], "", "")
    assert nodes * ranks == 64
    assert config.data.global_batch_size == 64 * config.data.local_batch_size
