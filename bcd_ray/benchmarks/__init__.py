"""What can be claimed of speed, each claim measured by one command: `jobs/benchmark.py`."""
