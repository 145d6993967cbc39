"""Faults at length: `python tests/fault_campaign.py --faults 200`; exit code 1 if one broke a promise.

It starts its own Ray cluster and S3 store. The same seed gives the same faults in the same order; which process meets
one, and what the others do meanwhile, is up to the machine.
"""

import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from faults.case import Scenario
from faults.catalogue import choose, set_references
from faults.stage import Stage


@dataclass(frozen=True)
class Campaign:
    """Inject faults into scoring runs, and check after each that nothing was lost and nothing stands twice."""

    faults: int = 200
    """At least so many faults; they come in scenarios of one to six."""
    seed: int = 0
    """Decides which and in what order."""
    only: str = ""
    """Only scenarios whose line holds this text."""


def main(campaign: Campaign) -> int:
    """Play the scenarios, a line each, then the table; the number of violations decides the exit code."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the `finally` below, else the servers stay
    scenarios = choose(campaign.faults, campaign.seed, campaign.only)
    injected, violated, skipped = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder))
        try:
            set_references(stage)
            for scenario in scenarios:
                before = time.monotonic()
                problem, outcome = _play(scenario, stage)
                counter = {"violation": violated, "skipped": skipped}.get(outcome)
                if counter is not None:
                    counter[scenario.kind] += 1
                injected[scenario.kind] += scenario.faults * (outcome != "skipped")
                line = f"{injected.total():4} {time.monotonic() - before:6.1f} s  {outcome:9}  {scenario}"
                print(line + f"\n{problem}" * bool(problem), flush=True)
        finally:
            stage.close()
    print(f"\n{'faults':>6} {'violations':>10}  kind")
    for kind in sorted(injected | skipped):
        print(f"{injected[kind]:6} {violated[kind]:10}  {kind}{' (skipped in part)' * (kind in skipped)}")
    minutes = (time.monotonic() - started) / 60
    print(f"{injected.total()} faults, {violated.total()} violations, {minutes:.0f} minutes, seed {campaign.seed}")
    return int(violated.total() > 0)


def _play(scenario: Scenario, stage: Stage) -> tuple[str, str]:
    """What went wrong, and the outcome in a word."""
    try:
        scenario.play(stage)
    except PermissionError as error:
        return str(error), "skipped"
    except Exception:  # whatever it is, the promise was not shown to hold
        return traceback.format_exc(), "violation"
    return "", "ok"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Campaign)))
