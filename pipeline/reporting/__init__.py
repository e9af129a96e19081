"""What `python -m pipeline.report` makes of runs: curves, tables and pages."""
