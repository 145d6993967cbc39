"""Writes the tables of README.md and docs/ anew, from the code, and the JSON schemas: `python tests/write_docs.py`.

A page says where a table stands with `<!-- generated: NAME -->` and `<!-- end -->`. `tests/test_docs.py` fails where a
page lags behind the code. A new option needs nothing here, a new kind of table a line in `tables`.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for `jobs`, as under pytest

from pydantic import TypeAdapter  # noqa: E402

from bcd_ray.ledger import schema  # noqa: E402
from bcd_ray.model.triage import REASONS  # noqa: E402
from bcd_ray.nights.config import NightlyConfig, file_model  # noqa: E402
from bcd_ray.nights.metrics import METRICS  # noqa: E402
from bcd_ray.nights.record import Record  # noqa: E402

COMMAND = "python tests/write_docs.py"
_TABLE = re.compile(r"<!-- generated: (.+?) -->\n.*?<!-- end -->", re.DOTALL)


def schemas() -> dict[Path, str]:
    """The JSON schemas in docs/, as the code has them now."""
    kinds: dict[str, Any] = {"nightly": file_model(), "last_line": Record}
    meanings = {"nightly": _comments(NightlyConfig), "last_line": _comments(Record)}
    found = {}
    for name, kind in kinds.items():
        schema = TypeAdapter(kind).json_schema()
        for key, described in schema["properties"].items():
            described["description"] = meanings[name][key]
        found[ROOT / "docs" / f"{name}_schema.json"] = json.dumps(schema, indent=2) + "\n"
    return found


def pages() -> list[Path]:
    """README.md and what is in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(page: str) -> str:
    """The text of a page with the tables as the code has them now; markers of other names are left alone."""
    known = tables()

    def fill(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"<!-- generated: {name} -->\n{known[name]}\n<!-- end -->" if name in known else found.group()

    return _TABLE.sub(fill, page)


def tables() -> dict[str, str]:
    """Every table that the code has, by name, as Markdown."""
    return {
        **{f"options of {config.__name__}": _options(config) for config in job_configs().values()},
        "columns": _table(
            "column",
            "type",
            "unit",
            "meaning",
            rows=((f"`{name}`", f"`{kind}`", *rest) for name, kind, *rest in schema.COLUMNS),
        ),
        "statuses": _table("status", "meaning", "the next run", rows=_statuses()),
        "review reasons": _table("review reason", "meaning", rows=_named(REASONS)),
        "manifest": _table("in the manifest", "meaning", rows=_named(schema.MANIFEST)),
        "last line": _table("in the last line", "meaning", rows=_named(_comments(Record))),
        "metrics": _table("metric", "meaning", rows=_named(METRICS)),
        "rooms": _table("room", "what it is", "public", rows=_rooms()),
    }


def job_configs() -> dict[str, type[Any]]:
    """What each file of jobs/ is configured by: the class that its `main` takes."""
    names = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
    mains = {f"jobs/{name}.py": importlib.import_module(f"jobs.{name}").main for name in names}
    return {name: next(iter(get_type_hints(main).values())) for name, main in mains.items()}


def _options(config: type[Any]) -> str:
    """A row an option, those that must be given first; the meaning is the comment that `--help` shows too."""
    hints, meanings = get_type_hints(config), _comments(config)
    rows = [
        (_option(field, hints[field.name]), _default(field), meanings[field.name])
        for field in sorted(dataclasses.fields(config), key=lambda field: not _is_required(field))
    ]
    return _table("option", "default", "meaning", rows=rows)


def _comments(config: type[Any]) -> dict[str, str]:
    """The string below each field, of a dataclass and of those that it extends, in one line."""
    found: dict[str, str] = {}
    for each in filter(dataclasses.is_dataclass, reversed(config.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, comment in pairwise(statements):
            is_text = isinstance(comment, ast.Expr) and isinstance(comment.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(str(comment.value.value).split())  # type: ignore[attr-defined]
    return found


def _option(field: "dataclasses.Field[Any]", kind: Any) -> str:
    flag = field.name.replace("_", "-")
    if kind is bool:
        return f"`--{flag}`" + f", `--no-{flag}`" * bool(field.default)
    several = get_origin(kind) is tuple
    choices = get_args(kind)[0] if several else kind
    values = f" {{{','.join(get_args(choices))}}}" if get_origin(choices) is Literal else ""
    return f"`--{flag}{values}{' ...' if several else ''}`"


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]") -> str:
    if _is_required(field):
        return "required"
    with patch.dict(os.environ, HOME="~", XDG_CACHE_HOME=""):  # the same page on every machine
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(f"`{each}`" for each in (value if isinstance(value, tuple) else (value,)) if each not in ("", None))


def _rooms() -> Iterator[tuple[str, str, str]]:
    """What bcd_ray consists of, from the lowest layer of the import contracts up, as its first lines say."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    for name in (name for layer in reversed(layers) for name in re.split(r"\s*[|:]\s*", layer)):
        module = importlib.import_module(f"bcd_ray.{name}")
        first, _, public = (module.__doc__ or "").partition("Public:")
        words = " ".join(first.split("\n\n")[0].split()), " ".join(public.split()).rstrip(".")
        yield (f"`{name}{'/' if hasattr(module, '__path__') else '.py'}`", *words)


def _statuses() -> Iterator[tuple[str, str, str]]:
    for name, text in _named(schema.STATUSES):
        yield name, text, "tries again" if name.strip("`") in schema.PASSING_STATUSES else ""


def _named(meanings: dict[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"`{name}`", text) for name, text in meanings.items())


def _table(*heading: str, rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def main() -> None:
    """Fill the tables of every page, and say which files changed."""
    for page, new in {**{page: filled(page.read_text()) for page in pages()}, **schemas()}.items():
        if not page.exists() or page.read_text() != new:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)} written anew")


if __name__ == "__main__":
    main()
