"""What people look at: console and log.txt (logs, progress), metrics.jsonl (metrics_file), and
TensorBoard (board, layout, pictures, event_file, identity), written by rank 0 through one `Monitor`
(run_monitor).

The horizontal axis everywhere is the position: images seen by the whole job.
"""

from pipeline.monitor.logs import files_log, log, log_to_file, start_logging
from pipeline.monitor.metrics_file import read_metrics
from pipeline.monitor.patient_file import Room
from pipeline.monitor.run_monitor import Metrics, Monitor, RunMonitor

__all__ = [
    "Metrics", "Monitor", "Room", "RunMonitor", "files_log", "log", "log_to_file", "read_metrics",
    "start_logging",
]  # fmt: skip
