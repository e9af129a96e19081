"""`python -m pipeline.export`: a checkpoint's weights for other programs, and back."""
