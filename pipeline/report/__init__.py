"""`python -m pipeline.report`: errors and curves of runs, and published numbers beside them."""
