"""`python -m pipeline.export`: exports a checkpoint's weights for other programs, and imports
theirs."""
