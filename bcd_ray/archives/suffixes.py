"""What names say: which files are images, which are known to lie beside them, and what is left out, in words."""

import re
from collections import Counter
from collections.abc import Mapping

from bcd_ray.uris import hidden_part

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".dcm")
_OTHERS, _MOST_SUFFIXES = "other suffixes", 1000
HIDDEN = "hidden"  # what files and members are counted under that `uris.hidden_part` finds
CLOSED = "folders without permission"  # of which nobody knows what is in them
# What is written beside images, and is none: labels of WebDataset, notes, tables, digests.
_SIDECARS = frozenset(
    [
        *(".cls", ".id", ".idx", ".index", ".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".xml", ".html", ".htm"),
        *(".txt", ".text", ".md", ".rst", ".log", ".csv", ".tsv", ".xls", ".xlsx", ".doc", ".docx", ".ini", ".cfg"),
        *(".toml", ".sha1", ".sha256", ".sha512", ".md5", ".py", ".ipynb"),
        *("license", "licence", "readme", "copying", "checksums", "sha256sums", "md5sums", "_success"),
        HIDDEN,
    ]
)


def suffix_of(name: str) -> str:
    """What a file is counted under: its suffix in lower case, or its name where that is a known one without."""
    file = name.rpartition("/")[2].lower()
    stem, _, suffix = file.rpartition(".")
    if stem:
        return f".{suffix}" if re.fullmatch("[a-z][a-z0-9_]{0,9}", suffix) else _OTHERS
    return file if file in _SIDECARS else "no suffix"


def count_left_out(counts: Counter[str], name: str) -> None:
    """Count a member that is no image, by its suffix while there are not too many of them."""
    suffix = HIDDEN if hidden_part(name) else suffix_of(name)
    counts[suffix if suffix in counts or len(counts) < _MOST_SUFFIXES else _OTHERS] += 1


def is_sidecar(name: str) -> bool:
    """Whether the name is of what usually lies beside images, and is none."""
    return suffix_of(name) in _SIDECARS


def unexpected(left_out: Mapping[str, int]) -> int:
    """How many of what is left out, by suffix, are neither hidden nor known to lie beside images."""
    return sum(count for suffix, count in left_out.items() if suffix not in _SIDECARS)


def left_out_words(left_out: Mapping[str, int]) -> str:
    """What is left out, the most first, what nobody expects before what usually lies beside images."""
    order = sorted(left_out.items(), key=lambda each: (each[0] in _SIDECARS, -each[1], each[0]))
    further = f" and {len(order) - 8} further kinds" if len(order) > 8 else ""
    return ", ".join(f"{count:,} {suffix}" for suffix, count in order[:8]) + further
