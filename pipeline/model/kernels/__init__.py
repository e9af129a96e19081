"""Kernels of our own. Nothing outside this package imports triton."""
