"""`python -m launch.slurm`: runs a command of the pipeline on every rank of a Slurm job."""


def say(line: str) -> None:
    """Prints a line of the launcher itself to the job's log."""
    print(f"launch: {line}", flush=True)
