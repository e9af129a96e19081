"""`python -m launch.slurm`: runs a command of the pipeline on every rank of a Slurm job."""
