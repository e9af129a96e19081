"""`python -m pipeline.prepare`: prepares data sets."""
