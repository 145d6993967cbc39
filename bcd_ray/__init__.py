"""Blood-cancer detection on Ray: train a smear classifier, score whole archives, read the Parquet."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bcd_ray")
except PackageNotFoundError:  # a working directory shipped by `ray job submit`, not installed
    __version__ = "unknown"
