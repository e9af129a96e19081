"""Output for people, written by rank 0 through one `Monitor`: metrics.jsonl (monitor), lines and a
bar on the console (progress), and TensorBoard (board, pictures).

The horizontal axis everywhere is the position: images seen by the whole job.
"""
