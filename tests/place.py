"""Prints where a launcher has put this task, as a line of JSON: `python -m place`."""

import json
import os

NAMES = ("HOROVOD_", "CUDA_VISIBLE_DEVICES", "SLURMD_NODENAME", "NCCL_SOCKET_IFNAME")

print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(NAMES)}), flush=True)
