"""Output for people, written by rank 0 through one `Monitor`: metrics.jsonl (monitor), lines and a
bar on the console (progress), and the loggers of `run.loggers`: TensorBoard (board, charts,
pictures), tables (tables), and W&B and MLflow (wandb_run, mlflow_run), which a thread feeds
(sender).

The horizontal axis everywhere is the position: images seen by the whole job.
"""
