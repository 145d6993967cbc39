"""The README says what the code does: its tables, its options and its commands are held against the code."""

import dataclasses
import re
from pathlib import Path

import pytest

from bcd_ray.archives import config as archives
from bcd_ray.benchmarks import config as benchmarks
from bcd_ray.evaluation import config as evaluation
from bcd_ray.learning import config as learning
from bcd_ray.scoring import config as scoring
from bcd_ray.scoring import schema
from jobs import quickstart

ROOT = Path(__file__).parents[1]
CONFIGS = {
    name: each
    for module in (archives, benchmarks, evaluation, learning, scoring, quickstart)
    for name, each in vars(module).items()
    if name.endswith("Config") and dataclasses.is_dataclass(each)
}


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_tables_of_the_schema_stand_in_it(readme: str) -> None:
    assert schema.markdown() in readme


def test_every_job_stands_in_it_and_every_file_it_names_exists(readme: str) -> None:
    named = set(re.findall(r"\bjobs/\w+\.py\b", readme))
    assert {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py")} <= named
    linked = {target for target in re.findall(r"\]\(([^)#\s]+)", readme) if "://" not in target}
    assert [name for name in named | linked if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("job", "field"), [(name, field.name) for name, each in CONFIGS.items() for field in dataclasses.fields(each)]
)
def test_every_option_is_explained(readme: str, job: str, field: str) -> None:
    option = f"--{field.replace('_', '-')}"
    assert re.search(rf"(?<![\w-]){option}(?![\w-])", readme), f"README.md does not mention {option} of {job}"


def test_no_option_is_made_up(readme: str) -> None:
    fields = [field for each in CONFIGS.values() for field in dataclasses.fields(each)]
    known = {f"--{field.name.replace('_', '-')}" for field in fields}
    known |= {f"--no-{field.name.replace('_', '-')}" for field in fields if field.type is bool}
    commands = re.findall(r"python jobs/\w+\.py((?:[^\n]|\\\n)*)", readme)
    used = {option for command in commands for option in re.findall(r"(?<!\S)--[a-z0-9-]+", command)}
    assert used
    assert used <= known
