"""What `python -m pipeline.benchmark` measures, one file per benchmark."""
