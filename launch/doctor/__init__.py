"""`python -m launch.doctor`: finds what would go wrong on this machine, and how to fix it."""
