"""What people look at: console and log.txt (progress), metrics.jsonl (metrics_file), and
TensorBoard (board, layout, pictures, event_file, identity), written by rank 0 through one `Monitor`
(run_monitor).

The horizontal axis everywhere is the position: images seen by the whole job.
"""
