"""A rank of `benchmark allreduce` whose link is slow: each real averaging takes longer.

Started as `python -m slow_link_rank DEVICE`.
"""

import os
import sys
import time

from pipeline.benchmark.allreduce import main
from pipeline.ranks.horovod import HorovodWorld


class SlowLinkWorld(HorovodWorld):
    """Waits for SLOW_LINK_SEC before it averages."""

    def average_(self, tensors):
        time.sleep(float(os.environ["SLOW_LINK_SEC"]))
        super().average_(tensors)


if __name__ == "__main__":
    from pipeline.ranks import horovod

    horovod.HorovodWorld = SlowLinkWorld
    main(sys.argv[1:])
