"""Prints where a launcher has put this task, as a line of JSON: `python -m place`."""

import json
import os

NAMES = (
    "HOROVOD_", "CUDA_VISIBLE_DEVICES", "SLURMD_NODENAME", "NCCL_SOCKET_IFNAME",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_",
    "GLOO_SOCKET_IFNAME",
)  # fmt: skip

print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(NAMES)}), flush=True)
