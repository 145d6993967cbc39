"""What a night can be told, on the command line or in a TOML file."""

import re
import tomllib
from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta
from string import Formatter
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from bcd_ray import storage, uris
from bcd_ray.config import at_least, normalize, shares
from bcd_ray.errors import ConfigError, StorageError
from bcd_ray.progress import Style
from bcd_ray.scoring.config import ScoreConfig

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_BEFORE = {"tonight": timedelta(hours=12), "today": timedelta(0), "yesterday": timedelta(1)}
_IN_A_FILE = {
    "extra_forbidden": "is no option, each of which is written with _ for -",
    "tuple_type": "write a list: ['a']",
}
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::00)?")


@dataclass(frozen=True, kw_only=True)
class NightlyConfig(ScoreConfig):
    """Score what is new tonight, one run at a time, and end with a line of JSON and an exit code for a scheduler."""

    config: str = ""
    """TOML file whose keys are these options, with _ for -: a path or s3://. What the command line says wins."""
    input: tuple[str, ...] = ()
    """Archives: folders or single shards (tar, zip, Parquet, loose images), paths or s3://. `{date:%Y/%m/%d}` stands
    for the day of the night, in the letters of strftime; every other input is kept up with as it grows."""
    date: str = "tonight"
    """Day of the night, for inputs with a date: by this machine's clock `tonight`, which until noon is the day before,
    so that the same command after midnight is of the same night; `today`; `yesterday`; or 2026-11-30."""
    days: int = 7
    """Of inputs with a date also the days before, so many in all: what came late, or a night left undone, is scored.
    Days without a folder are passed over."""
    expect: bool = False
    """Fail (5) if tonight's input is not there: an input with a date has none of that day, or, where none has a date,
    nothing is new that day."""
    deadline: str = ""
    """When to stop: after a duration (`5h30m`, `90m`), or at the next such time of day (`06:30`). From then on no unit
    is begun; those under way are finished, ten minutes at most. Nothing is published (4); the next night goes on."""
    max_review: float = 1.0
    """Share of the run's rows that may need review before the exit code says so (7)."""
    max_unfamiliar: float = 1.0
    """Share of the run's sources that may be like no day that was trained on before the exit code says so (7)."""
    hourly_cost: float = 0.0
    """What an hour costs on all nodes together, in your currency, for `--dry-run`."""
    metrics: str = ""
    """File for the node exporter's textfile collector, written at the end of a good night and of a bad one: a local
    path that ends in .prom."""
    progress: Style = "auto"
    """What is said on standard error: `bar`, one line with rate and time left that is written over; `plain`, lines;
    `json`, lines of JSON with time and run id; `auto`: `bar` on a terminal, else `plain`."""
    log_names: bool = False
    """Show names below the inputs in what is said, which can be those of patients; without it they are cut off."""
    table: Literal["none", "delta"] = "none"
    """`delta`: keep OUTPUT/table, a Delta table of the rows that hold, with a commit for each run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "date", day_of(self.date, datetime.now()).isoformat())
        deadline_at(self.deadline, datetime.now())
        at_least(self, 1, "days")
        at_least(self, 0, "hourly_cost")
        shares(self, "max_review", "max_unfamiliar")
        if self.metrics:
            normalize(self, "metrics")
            if uris.is_s3(self.metrics) or not self.metrics.endswith(".prom"):
                raise ConfigError(f"--metrics {self.metrics}: the node exporter only reads local files NAME.prom")

    @staticmethod
    def spelled(uri: str) -> str:
        """A template as it is, if it is one that gives a folder for each day; other inputs as scoring spells them."""
        if "{" not in uri:
            return ScoreConfig.spelled(uri)
        days = [date(2026, 1, 1) + timedelta(days) for days in (0, 1, 31, 366)]
        try:
            folders = {of_day(uri, day) for day in days}
            if any(conversion for *_, conversion in Formatter().parse(uri)):
                raise ValueError("a date as Python writes it")
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            raise ConfigError(f"--input {uri}: write {{date:%Y/%m/%d}} for the day, and {{{{ for a brace") from error
        if len(folders) < 2 or any("%" in folder for folder in folders):
            raise ConfigError(f"--input {uri} is the same on each day: write {{date:%Y/%m/%d}} for the day")
        return uri


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(NightlyConfig):
    """Look whether all is there that a night of these options needs; nothing is scored or published."""

    json: bool = False
    """Print a JSON list of the checks in place of lines."""


def of_day(template: str, day: date) -> str:
    """The folder of a day."""
    return uris.normalize(template.format(date=day))


def day_of(text: str, now: datetime) -> date:
    """`tonight`, `today`, `yesterday`, or a day as 2026-11-30; ConfigError for others."""
    if text in _BEFORE:
        return (now - _BEFORE[text]).date()
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--date {text} is no day: write tonight, today, yesterday, or as 2026-11-30") from error


def deadline_at(text: str, now: datetime) -> datetime | None:
    """When a deadline is, None for an empty one; ConfigError where the text is neither a duration nor a time of day."""
    if not text:
        return None
    if at := _TIME_OF_DAY.fullmatch(text):
        same_day = now.replace(hour=int(at[1]), minute=int(at[2]), second=0, microsecond=0)
        return same_day if same_day > now else same_day + timedelta(days=1)
    if found := _DURATION.fullmatch(text):
        hours, minutes, seconds = (int(each or 0) for each in found.groups())
        return now + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    raise ConfigError(f"--deadline {text}: write a duration, as 5h30m or 90m, or a time of day, as 06:30")


def file_model() -> type[BaseModel]:
    """What may stand in a `--config` file: each option but `config` itself, none of them required."""
    hints = get_type_hints(NightlyConfig)
    options: dict[str, Any] = {
        field.name: (hints[field.name], None) for field in fields(NightlyConfig) if field.name != "config"
    }
    return create_model("nightly", __config__=ConfigDict(extra="forbid"), **options)


def with_file(arguments: list[str]) -> list[str]:
    """A command line with what its `--config` file says in front, but for options that it gives itself.

    Raises:
        ConfigError: the file is not there, is no TOML, or a key or a value in it is none of the options.
    """
    words = [(word.partition("=")[0].replace("_", "-"), place) for place, word in enumerate(arguments)]
    places = [place for word, place in words if word == "--config"]
    if not places:
        return arguments
    _, equals, name = arguments[places[-1]].partition("=")
    path = uris.normalize(name if equals else "".join(arguments[places[-1] + 1 : places[-1] + 2]))
    given = {re.sub("^--(no-)?", "", word) for word, _ in words if word.startswith("--")}
    return [word for key, value in _read(path).items() if key not in given for word in _words(key, value)] + arguments


def _read(path: str) -> dict[str, Any]:
    """The options of a file, by flag."""
    try:
        table = tomllib.loads(storage.read_bytes(path).decode())
        plain = {key: value.isoformat() if isinstance(value, date | time) else value for key, value in table.items()}
        options = file_model().model_validate(plain).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {_IN_A_FILE.get(each['type'], each['msg'])}" for each in error.errors()
        )
        raise ConfigError(f"--config {path}: {problems}") from error
    except (StorageError, ValueError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    return {key.replace("_", "-"): value for key, value in options.items()}


def _words(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
