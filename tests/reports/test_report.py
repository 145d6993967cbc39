"""The page that people read: one file, and nothing in it that its words could break."""

import csv
import io
import json
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.reports.model_card import _code
from bcd_ray.reports.page import Card, Page, Section
from bcd_ray.reports.results import for_csv
from bcd_ray.uris import to_json


class _Text(HTMLParser):
    """Collects the tags and the words of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.words = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1))
def test_words_stay_words_whatever_they_are(words: str) -> None:
    page = Page("title", words, [Card(words, words)], [Section(words, words=[words], columns=[words], rows=[[words]])])
    plain = Page("title", "a", [Card("a", "a")], [Section("a", words=["a"], columns=["a"], rows=[["a"]])])
    found, expected = _Text(), _Text()
    found.feed(page.html().decode())
    expected.feed(plain.html().decode())
    assert found.tags == expected.tags
    assert "".join(found.words).count(words) >= 6


def test_a_file_name_that_is_not_utf_8_can_be_written() -> None:
    assert "data/\\udcff.jpg" in Page("title", "data/\udcff.jpg", [], []).html().decode()


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    names = ["=2+2/a.jpg", "+a", "-north/a.jpg", "@a", "\ta", "a=b.jpg", "", None]
    table = pa.table({"image": pa.array(names, pa.string()), "p": [-0.5] * len(names)})
    lines = list(csv.reader(io.StringIO(for_csv(table).decode())))[1:]
    assert [name for name, _ in lines] == ["'=2+2/a.jpg", "'+a", "'-north/a.jpg", "'@a", "'\ta", "a=b.jpg", "", ""]
    assert {p for _, p in lines} == {"-0.5"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [("data", "`data`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a|b\n\udce4", "`a|b\\n\\udce4`")],
)
def test_a_name_in_markdown_stays_one_piece_of_code(name: str, shown: str) -> None:
    assert _code(name) == shown


def test_json_is_what_strict_readers_take() -> None:
    written = to_json({"a\udce4": ["b\udce4", 1, None, ("c",)]})
    assert json.loads(written) == {"a\\udce4": ["b\\udce4", 1, None, ["c"]]}
