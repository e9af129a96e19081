"""Files, console, exit of a process: usable by any part. Knows nothing of training."""
