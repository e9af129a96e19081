"""From image files to batches.

Which images exist (scan, manifest), in which order they come (order), how each is cropped
(augment), and the execution of that by DALI (dali).
"""
