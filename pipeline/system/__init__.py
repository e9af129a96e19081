"""Files, console, how a process ends: what any part may use. Knows nothing of training."""
