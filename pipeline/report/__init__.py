"""`python -m pipeline.report`: curves and tables of runs compared with the paper's."""
