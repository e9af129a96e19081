"""Looking at runs from outside, without touching them: `python -m pipeline.runs`."""
