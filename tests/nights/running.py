"""Jobs in this process: their own files with a command line, how they ended, and a night's last line."""

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
class Ended:
    """How a job ended."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """A night's last line."""
        record = last_line(self.out)
        assert record["exit_code"] == self.code
        return record


def last_line(out: str) -> dict[str, Any]:
    """The record, which is as its schema says."""
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    jsonschema.validate(record, SCHEMA)
    return record


Job = Callable[..., Ended]


def run_file(job: str, *arguments: object, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> Ended:
    """Run jobs/JOB.py with a command line."""
    captured.readouterr()
    patch.setattr(sys, "argv", [f"jobs/{job}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"jobs/{job}.py"), run_name="__main__")
    said = captured.readouterr()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, said.out, said.err)
