"""`python -m launch.slurm`: a command of the pipeline on every rank of a Slurm job."""


def say(line: str) -> None:
    """A line of the launcher's own in the job's log."""
    print(f"launch: {line}", flush=True)
