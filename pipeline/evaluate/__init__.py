"""`python -m pipeline.evaluate`: tests a checkpoint by the paper's protocols."""
