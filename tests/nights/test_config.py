"""What a night is told: files of options, days, deadlines, inputs with a date."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import tyro

from bcd_ray.cli import add_up
from bcd_ray.errors import ConfigError, MissedError
from bcd_ray.nights.config import NightlyConfig, day_of, deadline_at, with_file
from bcd_ray.nights.inputs import inputs_of

BASE = {"model": "/m", "output": "/o"}
DATED = "/lab/{date:%Y/%m/%d}"


def parsed(*arguments: str) -> NightlyConfig:
    """As the job makes it of a command line."""
    return tyro.cli(NightlyConfig, args=add_up(NightlyConfig, with_file(list(arguments))))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nightly.toml"
    path.write_text(
        "model = '/lab/model'\noutput = '/lab/scores'\ninput = ['/lab/a', '/lab/{date:%Y/%m/%d}']\n"
        "date = 2026-11-30\ndeadline = 06:30:00\nexpect = true\nmax_review = 0.5\ndays = 3\n"
    )
    return path


def test_a_file_gives_every_option(file: Path) -> None:
    config = parsed("--config", str(file))
    assert (config.model, config.output, config.input) == ("/lab/model", "/lab/scores", ("/lab/a", DATED))
    assert (config.date, config.deadline, config.expect) == ("2026-11-30", "06:30:00", True)
    assert (config.max_review, config.days) == (0.5, 3)


def test_the_command_line_wins(file: Path) -> None:
    config = parsed(
        f"--config={file}", "--no-expect", "--input", "/b", "--input", "/c", "--max-review=1", "--days", "1"
    )
    assert (config.input, config.expect, config.max_review, config.days) == (("/b", "/c"), False, 1, 1)
    assert config.model == "/lab/model"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 'm'", "modle: is no option"),
        ("days = 'many'", "days: Input should be a valid integer"),
        ("engine = 'fast'", "engine: Input should be 'auto'"),
        ("input = 'a'", r"input: write a list: \['a'\]"),
        ("model 'm'", r"Expected '=' after a key"),
        ("[a]\nb = 1", "a: is no option"),
    ],
)
def test_a_mistake_in_a_file_is_told_in_a_line(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"--config {file}: {words}") as told:
        with_file(["--config", str(file)])
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="nothing found at /no/file"):
        with_file(["--config", "/no/file"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": ()}, "give --input or --input-list"),
        ({"metrics": "s3:/lab/x.prom"}, "is neither a path nor a URI"),
        ({"metrics": "s3://lab/x.prom"}, "only reads local files"),
        ({"input": ("/lab/{day}",)}, "for the day"),
        ({"input": ("/lab/{}",)}, "for the day"),
        ({"input": ("/lab/{date.x}",)}, "for the day"),
        ({"input": ("/lab/{date!r}",)}, "for the day"),
        ({"input": ("/lab/{date:%Q}",)}, "is the same on each day"),
        ({"input": ("/lab/{date:%H}",)}, "is the same on each day"),
        ({"input": ("gs://lab/{date}",)}, "only local paths and s3://"),
        ({"date": "30.11.2026"}, "is no day"),
        ({"deadline": "soon"}, "write a duration"),
        ({"deadline": "25:00"}, "write a duration"),
        ({"days": 0}, "--days must be at least 1"),
        ({"max_review": 30}, "--max-review is a share"),
    ],
)
def test_mistakes_are_told_before_any_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        NightlyConfig(**{"input": (DATED,), **BASE, **options})


def test_the_home_folder_is_one_in_metrics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lab")
    assert NightlyConfig(**BASE, input=(DATED,), metrics="~/night.prom").metrics == "/home/lab/night.prom"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("5h30m", datetime(2026, 12, 1, 4, 30)),
        ("90m", datetime(2026, 12, 1, 0, 30)),
        ("45s", datetime(2026, 11, 30, 23, 0, 45)),
        ("06:30", datetime(2026, 12, 1, 6, 30)),
        ("23:15", datetime(2026, 11, 30, 23, 15)),
        ("23:00", datetime(2026, 12, 1, 23, 0)),
    ],
)
def test_a_deadline_is_the_next_one(text: str, expected: datetime | None) -> None:
    assert deadline_at(text, datetime(2026, 11, 30, 23, 0)) == expected


@pytest.mark.parametrize(
    ("text", "evening", "morning", "afternoon"),
    [("tonight", 30, 30, 1), ("today", 30, 1, 1), ("yesterday", 29, 30, 30), ("2026-11-28", 28, 28, 28)],
)
def test_the_same_command_after_midnight_is_of_the_same_night(
    text: str, evening: int, morning: int, afternoon: int
) -> None:
    times = [datetime(2026, 11, 30, 22), datetime(2026, 12, 1, 3), datetime(2026, 12, 1, 12)]
    assert [day_of(text, now).day for now in times] == [evening, morning, afternoon]


def deliver(root: Path, day: date) -> str:
    folder = root / day.strftime("%Y/%m/%d")
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"jpeg")
    return str(folder)


def test_days_that_are_there_are_read_and_tonight_s_can_be_expected(tmp_path: Path) -> None:
    template = f"{tmp_path}/{{date:%Y/%m/%d}}"
    folders = [deliver(tmp_path, date(2026, 11, day)) for day in (27, 29)]
    (tmp_path / "2026/11/30").mkdir()
    (tmp_path / "2026/11/30/README.txt").write_text("nothing tonight")

    def inputs(**options: Any) -> tuple[str, ...]:
        return inputs_of(NightlyConfig(**{"input": (template,), "date": "2026-11-30", **BASE, **options})).uris

    assert sorted(inputs()) == folders
    assert inputs(days=2) == (folders[1],)
    assert inputs(date="2026-11-29", days=1, expect=True) == (folders[1],)
    assert inputs(date="2026-01-01") == ()
    with pytest.raises(MissedError, match=f"nothing is at {tmp_path}/2026/11/30: look for the delivery"):
        inputs(expect=True)


def test_a_folder_of_a_month_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "2026-11").mkdir()
    (tmp_path / "2026-11" / "a.jpg").touch()
    config = NightlyConfig(input=(f"{tmp_path}/{{date:%Y-%m}}",), date="2026-11-30", **BASE)
    assert inputs_of(config).uris == (f"{tmp_path}/2026-11",)
