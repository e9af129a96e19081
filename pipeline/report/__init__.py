"""`python -m pipeline.report`: curves and tables of runs beside the paper's."""
