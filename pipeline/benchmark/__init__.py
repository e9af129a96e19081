"""`python -m pipeline.benchmark`: measures this machine."""
