"""`python -m pipeline.train`: one training run."""
