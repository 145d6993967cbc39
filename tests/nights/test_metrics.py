"""The metrics of a night: what the node exporter reads after good and bad ones, and the alerts that rest on it."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from bcd_ray.errors import EXIT_DEADLINE, EXIT_OK
from bcd_ray.nights.metrics import METRICS, write
from bcd_ray.nights.record import Record

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "docs/alerts.yaml").read_text())
Samples = dict[str, dict[str, float]]


def samples(path: Path) -> Samples:
    """By metric, the values by label."""
    families = text_string_to_metric_families(path.read_text())
    return {family.name: {" ".join(each.labels.values()): each.value for each in family.samples} for family in families}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bcd_ray.prom"


def good() -> Record:
    record = Record(run_id="0" * 16, units=3, units_done=3, images=40, statuses={"scored": 39, "corrupt_image": 1})
    record.review_share, record.drift, record.not_scored = 0.25, {"certainty": 0.9}, {"corrupt_image": 1}
    return record


def test_every_metric_is_in_the_file_of_a_good_night(path: Path) -> None:
    write(str(path), good())
    found = samples(path)
    assert found.keys() == METRICS.keys()
    assert found["bcd_ray_rows"] == {"scored": 39, "corrupt_image": 1}
    assert found["bcd_ray_run_info"] == {"0" * 16: 1}
    assert found["bcd_ray_review_ratio"] == {"": 0.25}
    assert found["bcd_ray_last_success_timestamp_seconds"] == found["bcd_ray_last_end_timestamp_seconds"]


def test_a_bad_night_keeps_the_time_of_the_last_good_one(path: Path) -> None:
    write(str(path), good())
    before = samples(path)
    write(str(path), Record(exit_code=EXIT_DEADLINE, units=3, units_done=1))
    after = samples(path)
    assert after["bcd_ray_exit_code"] == {"": EXIT_DEADLINE}
    assert after["bcd_ray_last_success_timestamp_seconds"] == before["bcd_ray_last_success_timestamp_seconds"]
    assert after["bcd_ray_last_end_timestamp_seconds"][""] > before["bcd_ray_last_end_timestamp_seconds"][""]
    assert "bcd_ray_review_ratio" not in after, "0 would be a claim"


@pytest.mark.parametrize("content", [None, "", "{", "bcd_ray_exit_code 0\n"])
def test_without_a_good_night_before_there_is_no_time_of_one(path: Path, content: str | None) -> None:
    if content is not None:
        path.write_text(content)
    write(str(path), Record(exit_code=1))
    assert "bcd_ray_last_success_timestamp_seconds" not in samples(path)


def test_a_file_that_cannot_be_written_fails_no_night(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(f"{tmp_path}/none/x.prom", good())
    assert re.match(r"--metrics \S+ cannot be written: No such file", capsys.readouterr().err)


@pytest.mark.parametrize("rule", RULES["groups"][0]["rules"], ids=lambda rule: str(rule["alert"]))
def test_the_alerts_are_of_metrics_that_there_are(rule: dict[str, Any]) -> None:
    promql_parser.parse(rule["expr"])
    assert set(re.findall(r"\bbcd_ray_\w+", rule["expr"])) <= METRICS.keys()
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert {"summary", "description"} == rule["annotations"].keys()
    assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))


def test_the_alerts_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed")
    for command in (["check", "rules", "docs/alerts.yaml"], ["test", "rules", "tests/nights/alerts_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_night_writes_them(nightly: Callable[..., Any], tmp_path: Path, bundle: Path) -> None:
    options = ("--model", bundle, "--output", tmp_path / "scores", "--input", f"{tmp_path}/{{date}}")
    assert nightly(*options, "--metrics", tmp_path / "a.prom").code == EXIT_OK
    assert samples(tmp_path / "a.prom")["bcd_ray_exit_code"] == {"": 0}
    assert nightly(*options, "--metrics", tmp_path / "a.prom", "--expect").code == 5
    assert samples(tmp_path / "a.prom")["bcd_ray_exit_code"] == {"": 5}
    assert nightly(*options, "--metrics", tmp_path / "a.txt").code == 2


def test_ray_s_own_metrics_begin_with_the_run(ray_cluster: None) -> None:
    page = (ROOT / "docs/nights.md").read_text()
    (query,) = re.findall(r"^```promql\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    promql_parser.parse(query)
    (pattern,) = re.findall(r'"(\(\[0-9a-f\][^"]*)"', query)
    dataset = ray.data.from_items([1])
    dataset.set_name("0" * 16)
    found = re.fullmatch(pattern, dataset.get_dataset_id())
    assert found
    assert found[1] == "0" * 16
