"""`python -m launch.slurm`: runs a command of the pipeline on every rank of a Slurm job."""

from pipeline.system import console


def say(line: str) -> None:
    """Prints a line of the launcher itself to the job's log."""
    console.say(f"launch: {line}")
