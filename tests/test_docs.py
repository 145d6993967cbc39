"""README.md and docs/ say what the code does: tables are the code's, commands are parsed, snippets are run."""

import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import click
import duckdb
import pytest
import tyro
from ledger.nights import night, shard
from ray.scripts.scripts import cli as ray_cli
from write_docs import COMMAND, ROOT, filled, pages, schemas, tables

from bcd_ray import read
from bcd_ray.nights.config import with_file
from bcd_ray.nights.table import CurrentTable
from bcd_ray.scoring.config import ForgetConfig
from bcd_ray.scoring.withdrawal import forget

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in pages()}
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:\w+=\S+ )*(?:python|ray|pytest|for) (?=[^`]*(?:--|\.py))[^`\n]+)`")
READ, NIGHTS = "docs/read.md", "docs/nights.md"
JAVA_OF_SPARK = 17
LONGEST_LINE = 130
# Their words are not looked at: they are the shell's, or of no program of this project.
OTHER_PROGRAMS = {
    "docker",
    "exit",
    "kubectl",
    "grep",
    "export",
    "chmod",
    "sha256sum",
    "nvidia-smi",
    "ruff",
    "mypy",
    "lint-imports",
}


def fenced(page: str, language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(PAGES[page]) if kind == language]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the code blocks, and those in a line of text or a table that name an option or a file."""
    for page, text in PAGES.items():
        found = fenced(page, "bash") + INLINE.findall(FENCED.sub("", text))
        for line in "\n".join(found).replace("\\\n", " ").splitlines():
            words = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=";&|<>")
            words.whitespace_split = True
            yield from ((page, command) for command in simple_commands(list(words)))


def simple_commands(words: list[str]) -> Iterator[list[str]]:
    """What the shell would run: `for`, `do`, variables before a command and redirections are left out."""
    command: list[str] = []
    for word in [*words, ";"]:
        if re.fullmatch(r"[;&|]+|done", word):
            if command and command[0] != "for":
                yield command
            command = []
        elif word.startswith((">", "<")):
            break
        elif word != "do" and (command or not re.match(r"\w+=", word)):
            command.append(word)


@pytest.fixture(autouse=True)
def _file_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder holds the nightly.toml that the page on nights shows."""
    (tmp_path / "nightly.toml").write_text(fenced(NIGHTS, "toml")[0])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_are_the_code_s(page: str) -> None:
    assert filled(PAGES[page]) == PAGES[page], f"{page} lags behind the code: run `{COMMAND}`"


def test_the_schemas_are_the_code_s() -> None:
    assert {path: path.read_text() for path in schemas()} == schemas(), f"run `{COMMAND}`"


def test_every_table_stands_on_a_page() -> None:
    shown = set(re.findall(r"<!-- generated: (.+?) -->", "".join(PAGES.values())))
    assert tables().keys() - shown == set(), f"write `<!-- generated: NAME -->` and `<!-- end -->`, then `{COMMAND}`"


@pytest.mark.parametrize(
    ("page", "command"), list(commands()), ids=lambda each: each if isinstance(each, str) else " ".join(each)
)
def test_a_command_is_one_that_the_programs_take(page: str, command: list[str]) -> None:
    program, *arguments = command
    if program == "python" and arguments[0].endswith(".py"):
        parse_program(*arguments)
    elif program == "ray":
        parse_ray(arguments)
    elif program in ("pytest", "bash"):
        paths = [each.partition("::")[0] for each in arguments if "/" in each or each.endswith(".py")]
        assert [path for path in paths if not (ROOT / path).exists()] == []
    elif program == "pip":
        assert arguments[0] == "install"
    else:
        assert program in OTHER_PROGRAMS, f"{page} shows `{' '.join(command)}`: say here how to check it"


def parse_program(path: str, *arguments: str) -> None:
    """The options are those of the program, and together they make a configuration."""
    assert (ROOT / path).exists(), path
    main = importlib.import_module(path.removesuffix(".py").removeprefix("tests/").replace("/", ".")).main
    config = next((kind for name, kind in get_type_hints(main).items() if name != "return"), None)
    if config:
        tyro.cli(config, args=with_file(list(arguments)) if "--config" in arguments else arguments)
    else:
        assert not arguments


def parse_ray(arguments: list[str]) -> None:
    command: click.Command = ray_cli
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    with command.make_context("ray", list(arguments)) as context:
        inner = context.params.get("entrypoint") or ()
    if "python" in inner:
        parse_program(*inner[inner.index("python") + 1 :])


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    folder, text = (ROOT / page).parent, PAGES[page]
    linked = {folder / target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target}
    linked |= {ROOT / name for name in re.findall(r"\b(?:jobs|tests|bcd_ray|docs)/[\w/]*\w\.\w+\b", text)}
    assert [str(path) for path in linked if not path.exists()] == []


def test_every_page_and_every_job_stand_in_the_readme() -> None:
    names = {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py")} | (PAGES.keys() - {"README.md"})
    assert [name for name in names if name not in PAGES["README.md"]] == []


def test_pages_are_no_longer_or_wider_than_can_be_read() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    lines = [(page, line) for page, text in PAGES.items() for line in text.splitlines()]
    assert [each for each in lines if len(each[1]) > LONGEST_LINE and not each[1].startswith("|")] == []


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The working folder holds scores/ of three nights and a withdrawal; returns image and run of each row that holds.

    A folder above bears the name of a column.
    """
    folder = tmp_path / "status=elsewhere"
    archive = [shard("/lab/a.tar"), shard("/lab/b.tar"), shard("/lab/c.jpg")]
    assert night(str(folder / "scores"), archive)
    for number in (0, 2):
        archive[number] = shard(archive[number].uri, "new")
        assert night(str(folder / "scores"), archive)
    monkeypatch.chdir(folder)
    assert forget(ForgetConfig(output="scores", images=("/lab/b.tar#1.jpg",))).images == 1
    CurrentTable("scores").update()
    current = read.current("scores", ["image_id", "run_id"])
    assert len(current) == 6
    assert len(set(current["run_id"].to_pylist())) == 3, "rows of every night hold"
    return set(zip(*(column.to_pylist() for column in current.columns), strict=True))


@pytest.mark.parametrize("page", ["README.md", READ])
def test_the_sql_of_a_page_runs_and_gives_the_rows_that_hold(published: set[tuple[str, str]], page: str) -> None:
    with duckdb.connect() as connection:
        for statement in connection.extract_statements("".join(fenced(page, "sql"))):
            result = connection.sql(statement)
            assert statement.type != duckdb.StatementType.SELECT or result.fetchall(), "no row to look at"
        if page == READ:
            assert set(connection.sql("SELECT image_id, run_id FROM current").fetchall()) == published


def _java() -> int:
    """Its major version, 0 where there is none."""
    said = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr if shutil.which("java") else ""
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("snippet", fenced(READ, "python"), ids=lambda text: text.split()[1])
def test_the_python_of_the_page_for_readers_gives_the_rows_that_hold(
    published: set[tuple[str, str]], snippet: str
) -> None:
    if "pyspark" in snippet and _java() < JAVA_OF_SPARK:
        pytest.skip(f"Spark needs Java {JAVA_OF_SPARK}")
    names: dict[str, Any] = {}
    exec(compile(snippet, READ, "exec"), names)
    if "embeddings" in names:
        assert len(names["embeddings"]) == len(names["kept"]) > 0
        assert set(names["kept"]["image_id"].to_pylist()) <= {image_id for image_id, _ in published}
        return
    current = names["current"]
    if "pyspark" in snippet:
        found = {tuple(row) for row in current.select("image_id", "run_id").collect()}
        names["spark"].stop()
    else:
        found = set(zip(*(map(str, current[name]) for name in ("image_id", "run_id")), strict=True))
    assert found == published
