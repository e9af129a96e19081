"""`python -m launch.slurm`: a command of the pipeline on every rank of a Slurm job."""
