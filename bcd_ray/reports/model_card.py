"""MODEL_CARD.md: what a model is for, and what was measured of it."""

import re
from collections.abc import Mapping
from typing import Any

from bcd_ray.metrics.classification import format_metrics
from bcd_ray.progress import one_line
from bcd_ray.reports.report import (
    LIMITS_CHOSEN,
    NOTHING_OF_A_NEW_DAY,
    audit_words,
    automatic_words,
    least_certainties,
    network_words,
)


def model_card(info: Mapping[str, Any], metrics: Mapping[str, Any]) -> bytes:
    """MODEL_CARD.md of a bundle, from its `model.json` facts and its metrics."""
    training = info["training"]
    counts = metrics["counts"]
    synthetic = "\n**Trained on synthetic, drawn images: of no use on real smears.**\n" if info["synthetic"] else ""
    int8 = info.get("int8")
    quantized = (
        f"\n**In int8** (`--engine openvino-int8`): the same class as in fp32 for {int8['agreement']:.2%} of these "
        f"images, accuracy {int8['accuracy']:.2%} for {int8['accuracy_fp32']:.2%}, probabilities at most "
        f"{int8['probability_difference']['largest']:.3f} apart. Where int8 hesitates fp32 decides: for "
        f"{int8['computed_in_fp32']:.1%} of them.\n"
        if int8
        else ""
    )
    patients = "The groups are as the user gave them." if training["split"] == "grouped" else NOTHING_OF_A_NEW_DAY
    each = ", ".join(f"{name}: {limit}" for name, limit in least_certainties(metrics["triage"]).items())
    limits = f"{LIMITS_CHOSEN} Least certainty without review, by suggested class: {each}."
    held_for = (
        "The risk holds for images of the days that were trained on, and for no other. "
        + (
            f"A shard or folder of {source['images']} images or more whose mean certainty is under "
            f"{source['certainty']:.4f} is like none of them, and goes to review whole (`unfamiliar_source`); of fewer "
            "images nobody can tell."
            if (source := info.get("source_limit"))
            else "Too few images were trained on to tell an unknown day by its images."
        )
        + ("" if training["group_table"] or training["group_pattern"] else " No groups are known: classes stood in.")
    )
    return f"""# Model card
{synthetic}
**Intended use.** Suggests one of four classes (benign, early Pre-B, Pre-B, Pro-B) for a peripheral blood smear image,
to support a haematologist. It makes no diagnosis and replaces no expert: every prediction is a suggestion to check.

**Model.** {network_words(training)}

**Data.** {counts["usable"]} images of {counts["images"]} found in {_code(training["data"])}; {counts["summary"]}.

**Protocol.** {metrics["protocol"]}. {patients}

**Figures** on the {metrics["part"]} part, one run with seed {training["seed"]}; intervals by a bootstrap over blocks
of file numbers, or groups, and none where there is no error, or one block a class:

```
{format_metrics(metrics)}
```

**Shortcuts.** {audit_words(metrics)}

**Triage.** {automatic_words(metrics["triage"][metrics["part"]]["automatic"])} {limits} {held_for}
{quantized}
**Known limits.** One hospital, one stain and one microscope per data set; colour of the background alone can give the
class away. Images of other stains, cells or magnifications are outside what the model knows; triage flags those that
lie far from the training images, and promises nothing for the others.
""".encode()


def _code(name: str) -> str:
    """A name as Markdown shows it letter by letter, backticks included."""
    text = one_line(name)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
