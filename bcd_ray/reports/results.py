"""What a job that measures writes: figures, report.html, metrics.json, in a folder that held none."""

import json
from typing import Any

from bcd_ray import storage
from bcd_ray.errors import ConfigError


def write_results(uri: str, metrics: dict[str, Any], figures: dict[str, bytes], report: bytes) -> None:
    """Write figures, report.html and, last, metrics.json below a folder."""
    for name, data in figures.items():
        storage.write_bytes(storage.join(uri, "figures", name), data)
    storage.write_bytes(storage.join(uri, "report.html"), report)
    storage.write_bytes(storage.join(uri, "metrics.json"), (json.dumps(metrics, indent=2) + "\n").encode())


def refuse_to_replace(output: str, name: str) -> None:
    """ConfigError if the output holds results already, or cannot be written."""
    if storage.exists(storage.join(output, name)):
        raise ConfigError(f"--output {output} holds results already: choose another folder, or delete it")
    storage.check_writable(output)
