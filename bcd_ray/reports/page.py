"""One self-contained HTML page: a title, cards with the main figures, and sections of pictures, words and tables."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Card:
    """A figure that is seen first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, a picture (the bytes of a PNG), paragraphs and a table, each if there is one."""

    heading: str
    figure: bytes = b""
    words: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Page:
    """What a report says; all text is plain and is escaped."""

    title: str
    about: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    warnings: Sequence[str] = field(default_factory=tuple)
    footer: str = ""

    def html(self) -> bytes:
        """The page, which loads nothing from anywhere."""
        text: str = _template().render(page=self)
        return text.encode("utf-8", "backslashreplace")


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bcd_ray.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("report.html")
