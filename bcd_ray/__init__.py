"""Blood-cancer detection on Ray: train a smear classifier, score whole archives, read the Parquet."""

import sys
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bcd_ray")
except PackageNotFoundError:  # a working directory shipped by `ray job submit`, not installed
    __version__ = "unknown"

# Through this package OpenVINO and NNCF tell a host of the internet that they were imported, and write an id of the
# user to the home folder. Both do without it; it must be gone before either is imported, in every process.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
