"""What is said on standard error: in place, in lines, in JSON, without secrets and without names."""

import json
from collections.abc import Iterator

import pytest

from bcd_ray import progress
from bcd_ray.progress import Progress, configure, of_run, one_line, say, shown


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    configure()


def test_a_name_does_nothing_to_a_terminal() -> None:
    assert one_line("\x1b[31mred\n\udce4.jpg") == "\\x1b[31mred\\n\\udce4.jpg"
    assert one_line("Präparat 1.jpg") == "Präparat 1.jpg"


def test_lines_of_json_have_time_and_run(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    say("begun")
    of_run("0" * 16)
    say("failed", "error")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["message"], first["level"], first["run_id"]) == ("begun", "info", None)
    assert (second["message"], second["level"], second["run_id"]) == ("failed", "error", "0" * 16)
    assert second["time"] >= first["time"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the counter sees."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("style", "total", "expected"),
    [
        ("plain", 100, "scoring  30/100 images  11 s  2/s  0:00:35 left\n"),
        ("plain", None, "scoring  30 images  3/10 units  11 s  2/s  0:00:35 left\n"),
        ("bar", 100, "\r\x1b[Kscoring  30/100 images  11 s  2/s  0:00:35 left"),
    ],
)
def test_rate_and_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str], style: progress.Style, total: int | None, expected: str
) -> None:
    configure(style)
    counter = Progress("scoring", total, units=None if total else 10)
    for clock[0] in (1.0, 6.0, 11.0):
        capsys.readouterr()
        counter.add(10)
    assert capsys.readouterr().err == expected


def test_what_is_said_meanwhile_takes_the_place_of_the_line(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("bar")
    counter = Progress("scoring", 100)
    clock[0] = 1.0
    counter.add(10)
    say("waiting")
    assert capsys.readouterr().err.endswith("1 s\r\x1b[Kwaiting\n")
    counter.finish()
    say("published")
    assert capsys.readouterr().err.endswith("\npublished\n")


def test_progress_in_json(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    counter = Progress("scoring", 100)
    for clock[0] in (1.0, 11.0):
        counter.add(10)
    clock[0] = 11.5
    counter.finish()
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["done"], found["total"], found["per_second"], found["seconds_left"]) == (20, 100, 1.0, 80.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing found at /lab/in/Müller Hans: 1.jpg: check the path", "nothing found at /lab/in/…: check the path"),
        ("/lab/in/a.tar#Doe, J.jpg", "/lab/in/…"),
        ("s3://lab/x/Doe; J.jpg: the store refuses (403): check credentials", "s3://lab/x/…: check credentials"),
        ("lab:2026/Doe.jpg is gone", "lab:…"),
        ("/lab/inside/a.jpg, /lab/in", "/lab/inside/a.jpg, /lab/in"),
    ],
)
def test_names_below_the_inputs_are_cut_off(text: str, expected: str) -> None:
    assert shown(text) == text
    configure(hidden_below=["/lab/in/", "s3://lab/x/", "lab:"])
    assert shown(text) == expected


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "short")
    assert shown("key very-secret-key, http://user:word@store:1/x, short") == "key ***, http://***@store:1/x, short"
