"""What a job that measures writes: figures, report.html, metrics.json, in a folder that held none; names in each."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from bcd_ray import storage
from bcd_ray.errors import ConfigError
from bcd_ray.uris import to_json


def write_results(uri: str, metrics: dict[str, Any], figures: dict[str, bytes], report: bytes) -> None:
    """Write figures, report.html and, last, metrics.json below a folder."""
    for name, data in figures.items():
        storage.write_bytes(storage.join(uri, "figures", name), data)
    storage.write_bytes(storage.join(uri, "report.html"), report)
    storage.write_bytes(storage.join(uri, "metrics.json"), to_json(metrics))


def for_csv(table: pa.Table) -> bytes:
    """CSV of a table, of whose text cells a spreadsheet takes none for a formula: an apostrophe stands before it."""
    for number, field in enumerate(table.schema):
        if field.type == pa.string():
            safe = pc.replace_substring_regex(table[number], r"^([=+\-@\t\r])", r"'\1")
            table = table.set_column(number, field, safe)
    sink = io.BytesIO()
    csv.write_csv(table, sink)
    return sink.getvalue()


def refuse_to_replace(output: str, name: str) -> None:
    """ConfigError if the output holds results already, or cannot be written."""
    if storage.exists(storage.join(output, name)):
        raise ConfigError(f"--output {output} holds results already: choose another folder, or delete it")
    storage.check_writable(output)
