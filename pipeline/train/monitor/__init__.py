"""What people look at: metrics.jsonl (metrics_file) and TensorBoard (board, pages, pictures),
written by rank 0 through one `Monitor` (monitor).

The horizontal axis everywhere is the position: images seen by the whole job.
"""
