"""A night in this process: the job's own file with a command line, its exit code and its last line."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from bcd_ray.nights.record import Record

ROOT = Path(__file__).parents[2]
SCHEMA = TypeAdapter(Record).json_schema()


@dataclass(frozen=True)
class Night:
    """How a night ended."""

    code: int
    record: dict[str, Any]
    err: str


Nightly = Callable[..., Night]


def last_line(out: str) -> dict[str, Any]:
    """The record, which is as its schema says."""
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    jsonschema.validate(record, SCHEMA)
    return record


@pytest.fixture
def nightly(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Nightly:
    """Runs jobs/nightly.py."""

    def run(*arguments: object) -> Night:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["jobs/nightly.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs/nightly.py"), run_name="__main__")
        said = capsys.readouterr()
        record = last_line(said.out)
        assert record["exit_code"] == ended.value.code
        return Night(record["exit_code"], record, said.err)

    return run
