"""A night in the text format of Prometheus, for the node exporter's textfile collector."""

import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from bcd_ray.errors import EXIT_ALARM, EXIT_OK, EXIT_UNSCORED
from bcd_ray.nights.record import Record
from bcd_ray.progress import say

_SUCCESSES = (EXIT_OK, EXIT_UNSCORED, EXIT_ALARM)
_LAST_SUCCESS = "bcd_ray_last_success_timestamp_seconds"
METRICS = {
    _LAST_SUCCESS: "End of the last night that came to its end (exit code 0, 3 or 7)",
    "bcd_ray_last_end_timestamp_seconds": "End of the last night, whatever became of it",
    "bcd_ray_exit_code": "Exit code of the last night",
    "bcd_ray_duration_seconds": "From start to end",
    "bcd_ray_rows": "Published rows of the run, by `status`",
    "bcd_ray_review_ratio": "Share of the published rows of the run that need review",
    "bcd_ray_not_scored_images": "Images of tonight's inputs without a prediction as they are now, by `status`",
    "bcd_ray_units": "Units of the run",
    "bcd_ray_units_done": "Units whose rows are there",
    "bcd_ray_read_bytes": "Bytes of the shards that were read",
    "bcd_ray_images_per_second": "Images over the seconds from start to end",
    "bcd_ray_storage_retries": "Requests to the store that were tried again",
    "bcd_ray_drift": "By `measure`, the mean over the run's scored rows; of `unfamiliar_sources`, the share of sources",
    "bcd_ray_run_info": "1, with `run_id`, by which Ray's own metrics are joined",
}
_LABELS = {"bcd_ray_rows": "status", "bcd_ray_not_scored_images": "status", "bcd_ray_drift": "measure"}
_LABELS |= {"bcd_ray_run_info": "run_id"}


def write(path: str, record: Record) -> None:
    """Write what is known at the end of a night; what cannot be written is said, and fails no night."""
    now = time.time()
    success = now if record.exit_code in _SUCCESSES else _last_success(path)
    values: dict[str, float | Mapping[str, float] | None] = {
        _LAST_SUCCESS: success,
        "bcd_ray_last_end_timestamp_seconds": now,
        "bcd_ray_exit_code": record.exit_code,
        "bcd_ray_duration_seconds": record.seconds,
        "bcd_ray_rows": record.statuses,
        "bcd_ray_review_ratio": record.review_share,
        "bcd_ray_not_scored_images": record.not_scored,
        "bcd_ray_units": record.units,
        "bcd_ray_units_done": record.units_done,
        "bcd_ray_read_bytes": record.read_bytes,
        "bcd_ray_images_per_second": record.images_per_second,
        "bcd_ray_storage_retries": record.retries,
        "bcd_ray_drift": record.drift,
        "bcd_ray_run_info": {record.run_id: 1} if record.run_id else {},
    }
    registry = CollectorRegistry()
    for name, value in values.items():
        labels = [_LABELS[name]] if name in _LABELS else []
        gauge = Gauge(name, METRICS[name].replace("`", ""), labels, registry=registry)
        if isinstance(value, Mapping):
            for label, each in value.items():
                gauge.labels(label).set(each)
        elif value is not None:
            gauge.set(value)
        else:
            registry.unregister(gauge)  # 0 would say that it is known
    try:
        write_to_textfile(path, registry)  # whole, by a rename
    except OSError as error:
        say(f"--metrics {path} cannot be written: {error.strerror}")


def _last_success(path: str) -> float | None:
    """Of an earlier night, as its file says."""
    try:
        families = list(text_string_to_metric_families(Path(path).read_text()))
    except (OSError, ValueError):
        return None
    return next((family.samples[0].value for family in families if family.name == _LAST_SUCCESS), None)
