"""The page that people read: one file, and nothing in it that its words could break."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.reports.page import Card, Page, Section


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
    assert b"\xff.jpg" in Page("title", "data/\udcff.jpg", [], []).html()
