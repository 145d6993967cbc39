"""Mutated files of every format for a while: `python tests/mutation_campaign.py --minutes 10`.

The files are decoded as in a job, in a process that says which file it is at: what kills that, outlasts its deadline or
raises is found by its number. Prints a line for each, for what its helper had to give up too, and what became of how
many; exit code 1 if anything got out of the helper. The seed and the number make the same file again: `--seed S
--only N`. `--flip FOLDER` counts instead what becomes of real JPEGs, as they are and with one bit flipped, and
`--flip-each N` in how many of N files of each format nobody notices a flipped bit that changed the picture.
"""

import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tyro
from archives.format_cases import CASES

from bcd_ray.archives import isolation
from bcd_ray.archives.images import Decoded, Limits, Rejected, decode

LIMITS = Limits(max_pixels=4_000_000, max_seconds=5, max_memory=1 << 30)
MEMORY = 4 << 30  # bytes of address space, libraries included
DEADLINE = 150.0  # seconds an image, on a busy machine: what kills its helper is tried twice
FILES = [(case.name, case.make()) for case in CASES]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with one to four changes, half of them among its first bytes, where headers are."""
    for _ in range(chance.randint(1, 4)):
        room = len(data) if chance.random() < 0.5 else min(len(data), 600)
        at, kind = (
            chance.randrange(room or 1),
            chance.choice(("bit", "byte", "number", "cut", "insert", "drop", "move")),
        )
        new = chance.randbytes(chance.randint(1, 8))
        if kind == "bit":
            data = data[:at] + bytes(each ^ 1 << chance.randrange(8) for each in data[at : at + 1]) + data[at + 1 :]
        elif kind == "byte":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "number":  # the ends of ranges
            value = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01"))
            data = data[:at] + value + data[at + 4 :]
        elif kind == "cut" and chance.random() < 0.2:
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + len(new) :]
        elif kind == "move":
            start, length = chance.randrange(len(data) or 1), chance.randint(1, 200)
            data = data[:at] + data[start : start + length] + data[at + length :]
    return data


def numbered(seed: int, number: int) -> tuple[str, bytes]:
    """The format and the bytes of a mutated file."""
    name, data = FILES[number % len(FILES)]
    return name, mutated(data, random.Random(f"{seed} {number}"))


def check(data: bytes) -> str:
    """What became of a file; an assertion where that is none of what may become of it."""
    result = isolation.decode(data, LIMITS)
    if not isinstance(result, Decoded):
        assert len(result.error.splitlines()) == 1, result.error
        return result.status
    assert result.pixels.shape == (224, 224, 3), result.pixels.shape
    assert result.pixels.dtype == "uint8", result.pixels.dtype
    assert result.width > 0, result.width
    assert result.height > 0, result.height
    return "damaged" if result.damage else "scored"


def work(tell: Connection, seed: int, first: int, step: int) -> None:
    """Decode every `step`-th file from `first` on, saying before each which it is, and what became of the last."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115  (for as long as the process is)
    number, became = first, ""
    while True:
        tell.send((number, became))
        try:
            became = check(numbered(seed, number)[1])
        except BaseException as error:  # whatever it is, it should not have come out
            became = f"raised {type(error).__name__}: {error}"
        number += step


def run(seconds: float, seed: int) -> tuple[list[str], Counter[str]]:
    """What went wrong, a line each, and what became of how many."""
    found, outcomes, number, end = list[str](), Counter[str](), 0, time.monotonic() + seconds
    context = multiprocessing.get_context("fork")
    while time.monotonic() < end:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(there, seed, number, 1), daemon=True)
        process.start()
        there.close()
        wrong = ""
        while not wrong and time.monotonic() < end:
            try:
                if not here.poll(DEADLINE):
                    wrong = f"took over {DEADLINE:.0f} s"
                    break
                number, became = here.recv()
            except EOFError:
                process.join(10)
                wrong = f"ended its process ({process.exitcode})"
                break
            if became.startswith("raised"):
                found.append(f"{number - 1} {numbered(seed, number - 1)[0]}: {became}")
            elif became:
                outcomes[became] += 1
                if became in ("crashed", "timed_out", "out_of_memory", "resource_error"):
                    print(f"{number - 1} {numbered(seed, number - 1)[0]}: {became}")
        if wrong:
            found.append(f"{number} {numbered(seed, number)[0]}: {wrong}")
            number += 1
        process.kill()
        process.join()
    return found, outcomes


def flip(folder: Path, seed: int, count: int = 1000) -> None:
    """Print what becomes of all JPEGs below a folder, and of so many of them with one bit of their picture flipped."""
    files = [path.read_bytes() for path in sorted(folder.rglob("*.jp*g"))]
    whole = [decode(data, LIMITS) for data in files]
    print(f"{len(files):,} as they are:", dict(Counter(map(_outcome, whole))))
    chance, found = random.Random(seed), Counter[str]()
    for index in chance.choices(range(len(files)), k=count):
        data, before = bytearray(files[index]), whole[index]
        data[chance.randrange(data.index(b"\xff\xda"), len(data))] ^= 1 << chance.randrange(8)
        after = decode(bytes(data), LIMITS)
        changed = isinstance(before, Decoded) and isinstance(after, Decoded) and (before.pixels != after.pixels).any()
        found[f"{_outcome(after)}{', other pixels' if changed else ''}"] += 1
    print(f"{count:,} with one flipped bit:", dict(found.most_common()))


def flip_each(count: int, seed: int) -> None:
    """Print of each format that is read how many of so many files with one flipped bit show another picture unnoticed.

    The bit is not one of the first 600 bytes, where headers are, if there are more.
    """
    for case, (name, data) in zip(CASES, FILES, strict=True):
        if case.becomes != "scored":
            continue
        chance, before, missed = random.Random(f"{seed} {name}"), decode(data, LIMITS), 0
        assert isinstance(before, Decoded), name
        for _ in range(count):
            spoilt = bytearray(data)
            spoilt[chance.randrange(min(600, len(data) // 2), len(data))] ^= 1 << chance.randrange(8)
            after = decode(bytes(spoilt), LIMITS)
            missed += _outcome(after) == "scored" and bool((after.pixels != before.pixels).any())  # type: ignore[union-attr]
        print(f"{missed:4} of {count}  {name}", flush=True)


def _outcome(result: Decoded | Rejected) -> str:
    if isinstance(result, Rejected):
        return result.status
    if not result.damage:
        return "scored"
    return "damaged (surplus bytes)" if "extraneous" in result.damage else "damaged (else)"


@dataclass(frozen=True)
class Campaign:
    """What is to be decoded."""

    minutes: float = 10
    """How long mutated files are decoded."""
    seed: int = 0
    """Of what is changed."""
    only: int | None = None
    """Decode this one, here."""
    flip: str = ""
    """A folder of real JPEGs, of which one bit is flipped, in place of the mutated files."""
    flip_each: int = 0
    """How many files of each format get one flipped bit, in place of the mutated files."""


def main(campaign: Campaign) -> int:
    if campaign.flip:
        flip(Path(campaign.flip), campaign.seed)
        return 0
    if campaign.flip_each:
        flip_each(campaign.flip_each, campaign.seed)
        return 0
    if campaign.only is not None:
        name, data = numbered(campaign.seed, campaign.only)
        print(name, check(data))
        return 0
    found, outcomes = run(campaign.minutes * 60, campaign.seed)
    print("\n".join(found))
    print(
        f"{outcomes.total():,} files of {len(FILES)} kinds:",
        ", ".join(f"{n:,} {name}" for name, n in outcomes.most_common()),
    )
    print(f"{len(found)} that raised, hung or ended the process that asked")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Campaign)))
