"""`python -m pipeline.prepare`: makes data sets ready."""
