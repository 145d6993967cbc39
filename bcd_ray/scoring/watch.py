"""What whoever starts a run may ask of it, and what is known of it before it ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.planning import NEW


@dataclass
class Watch:
    """Given to `score`, which fills in all but the first two as it goes on."""

    deadline: float = math.inf
    """Seconds since the epoch from which no unit is begun: those under way are finished, and nothing is published."""
    before_publish: Callable[[], None] = field(default=lambda: None)
    """Called when all units are there; what it raises ends the run, and nothing is published."""
    run_id: str = ""
    units: int = 0
    """Units of the run."""
    units_done: int = 0
    """Units whose rows are there, of earlier attempts at the run too."""
    images: int = 0
    """Rows that were made by this attempt."""
    read_bytes: int = 0
    """Of the shards of these rows."""
    retries: int = 0
    """Requests to the store that workers tried again."""
    new_shards: int = 0
    """Shards of the run of which nothing was published before."""

    def begun(self, plan: Plan, units_done: int) -> None:
        """A run goes on with its plan, of which so many units were done before."""
        self.run_id, self.units, self.units_done = plan.run_id, len(plan.units), units_done
        self.new_shards = plan.reasons.get(NEW, 0)
