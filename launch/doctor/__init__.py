"""`python -m launch.doctor`: what would go wrong on this machine, and how to repair it."""
