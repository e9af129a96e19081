"""`python -m pipeline.runs`: shows runs without touching them."""
