"""What went wrong in Ray's processes, from the texts that come of it, in one line."""

import re
from pathlib import Path
from traceback import walk_tb

_DIRECT = "The above exception was the direct cause of the following exception:"
_LINK = re.compile(rf"\n\s*({_DIRECT}|During handling of the above exception, another exception occurred:)\s*\n")
# A frame of a traceback, or the line in Ray's place of "Traceback": what is said comes after the last of them.
_FRAME = re.compile(r'^[ |]*File ".*", line \d+|\(pid=\d+, ip=|^[ |+]*(Exception Group )?Traceback \(')
_OURS = re.compile(r"(ray\.exceptions\.RayTaskError\(\w+\): )?bcd_ray\.errors\.\w+: ")
_MOST_CHARS = 300


def raised_by_ray(error: BaseException) -> bool:
    """Whether an exception is of one of Ray's own types, or came up in what Ray called: that is of any type."""
    import ray

    if any(each.__module__.partition(".")[0] == "ray" for each in type(error).__mro__):
        return True
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        parents = Path(frame.f_code.co_filename).parents
        if Path(ray.__file__).parent in parents:
            return True
        if Path(__file__).parent in parents:
            return False
    return False


def cause_of(error: BaseException) -> str:
    """In one line what a worker failed of: what this package said of it, or else the exception that began it all.

    An exception of a worker is a text here: of all that led to it, each with its frames, the first cause first. Ray's
    own comes last, with advice that helps nobody.
    """
    workers = getattr(error, "worker_failures", None)  # of Ray Train, whose text begins with a rank
    text = str(next(iter(workers.values())) if workers else getattr(error, "controller_failure", error))
    *before, last = _LINK.split(text)
    said = _said(last)
    for link, earlier in zip(before[-1::-2], before[-2::-2], strict=True):
        if link != _DIRECT or _OURS.match(said):
            break
        said = _said(earlier)
    return _OURS.sub("", said)[:_MOST_CHARS] or type(error).__name__


def _said(text: str) -> str:
    """What stands after the frames of one exception: its type and message, without the lines that are set in."""
    lines = text.splitlines()
    begin = max((number for number, line in enumerate(lines, 1) if _FRAME.search(line)), default=0)
    words = [line.rstrip() for line in lines[begin:] if line.strip(" \t|+-^~")]
    begun = [number for number, line in enumerate(words) if not line[0].isspace() and line[0] != "|"]
    if not begun:  # a group of exceptions: the last of it
        return words[-1].strip(" |+-") if words else ""
    return " ".join(line.strip() for line in words[begun[0] :] if not line.startswith("\t"))
