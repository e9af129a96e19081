"""`python -m pipeline.runs`: runs seen from outside, without touching them."""
