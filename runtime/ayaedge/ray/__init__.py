"""Batches beyond one machine: Ray Data hands rows to actors that hold a model each (extra `ray`)."""

import os as _os

# a head that is started from here on tells nobody that it runs, nor that it does not tell
_os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_USAGE_STATS_REPORT_URL="http://127.0.0.1:9/")

from ayaedge.ray.cluster import connected
from ayaedge.ray.dataset import answer

__all__ = ["answer", "connected"]
