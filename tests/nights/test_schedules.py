"""What docs/operate.md tells schedulers: the commands are the job's, and every exit code is one that they know."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import tyro

from bcd_ray import errors
from bcd_ray.nights.config import NightlyConfig

PAGE = (Path(__file__).parents[2] / "docs/operate.md").read_text()
CODES = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


@pytest.mark.parametrize("language", ["cron", "ini", "sh"])
def test_the_command_is_one_that_the_job_takes(language: str) -> None:
    (options,) = re.findall(r"python jobs/nightly\.py ([^>|\n]*)", block(language))
    config = tyro.cli(NightlyConfig, args=["--model", "m", "--output", "o", "--input", "i", *options.split()])
    assert config.config == "nightly.toml"


def test_systemd_knows_each_exit_code_as_one_thing() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block("ini"))
    names = ("SuccessExitStatus", "RestartForceExitStatus", "RestartPreventExitStatus")
    known = [int(code) for name in names for code in unit["Service"][name].split()]
    assert sorted([errors.EXIT_OK, *known]) == sorted(CODES)


@pytest.mark.parametrize("code", sorted(CODES))
def test_airflow_retries_skips_or_goes_on(code: int) -> None:
    command = re.sub(r"python jobs/nightly\.py [^|]*", f"(exit {code}) ", block("sh"))
    expected = {0: 0, 3: 0, 7: 0, 4: 99, 5: 99, 6: 99}.get(code, 1)
    assert subprocess.run(["sh", "-c", command], check=False).returncode == expected
