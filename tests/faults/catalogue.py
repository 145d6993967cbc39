"""All scenarios, and a choice among them."""

import random
from itertools import chain

from faults import nights, processes, storages
from faults.case import Case, Scenario
from faults.stage import Stage

PLACES = ("local", "s3")


def all_scenarios() -> list[Scenario]:
    """Every scenario, in a fixed order."""
    return list(
        chain.from_iterable(part.scenarios(place) for place in PLACES for part in (processes, storages, nights))
    )


def choose(faults: int, seed: int, only: str = "") -> list[Scenario]:
    """Scenarios in an order that the seed decides, with at least so many faults; of each kind and place there is one.

    Where more faults are asked for than there are, all are played again.

    Args:
        only: leaves those out whose line does not hold it.
    """
    dice, chosen, count = random.Random(seed), list[Scenario](), 0
    while count < faults:
        scenarios = [scenario for scenario in all_scenarios() if only in str(scenario)]
        dice.shuffle(scenarios)
        first = {(scenario.kind, scenario.place): scenario for scenario in reversed(scenarios)}
        for scenario in [*first.values(), *(other for other in scenarios if other not in first.values())]:
            if count < faults:
                chosen.append(scenario)
                count += scenario.faults
    dice.shuffle(chosen)
    return chosen


def set_references(stage: Stage) -> None:
    """Undisturbed runs, with which all others are compared."""
    for place in PLACES:
        case = Case(stage, place)
        case.publishes()
        case.check()
        stage.references[place] = case.only_run()
