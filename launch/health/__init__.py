"""What `python -m launch.doctor` knows: the facts of a node, and the checks over all nodes."""
