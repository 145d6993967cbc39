"""The figures of triage: whether confidence can be believed, and what review buys."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bcd_ray.reports.figures import BLUE, GREY, TEXT, VERMILLION, WIDTH, as_png, page_layout


def triage_plots(found: Mapping[str, Any], part: str, synthetic: bool) -> dict[str, bytes]:
    """PNGs by file name of what `thresholds.triage_figures` found on a part of the data."""
    return {
        "reliability.png": reliability_diagram(found["calibration"], part, synthetic),
        "risk_coverage.png": risk_coverage_curve(found["risk_coverage"], found["automatic"], part, synthetic),
    }


def reliability_diagram(calibration: Mapping[str, Any], part: str, synthetic: bool) -> bytes:
    """Accuracy by confidence, before and after temperature scaling, over how many images stand behind each bin."""
    figure = Figure(figsize=(WIDTH, 4.8), layout=page_layout())
    panels: Sequence[Any] = figure.subplots(1, 2, sharey=True)
    for axes, when, colour in zip(panels, ("before", "after"), (VERMILLION, BLUE), strict=True):
        rows = calibration[when]["reliability"]
        largest = max(row["images"] for row in rows)
        confidence = [row["confidence"] for row in rows]
        axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
        axes.plot(confidence, [row["accuracy"] for row in rows], "-", color=colour, linewidth=1.5)
        sizes = [20 + 180 * row["images"] / largest for row in rows]
        axes.scatter(confidence, [row["accuracy"] for row in rows], sizes, color=colour, clip_on=False, zorder=3)
        figures = f"ECE {calibration[when]['ece']:.3f}, Brier {calibration[when]['brier']:.3f}"
        axes.set_title(f"{when} temperature scaling\n{figures}", fontsize=TEXT)
        axes.set_xlabel("Confidence (area of a dot: images)", fontsize=TEXT)
        axes.set_xlim(0.2, 1)
        axes.set_ylim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Accuracy", fontsize=TEXT)
    return as_png(figure, f"Reliability diagram: {part} part", synthetic)


def risk_coverage_curve(
    curve: Mapping[str, Sequence[float]], automatic: Mapping[str, Any], part: str, synthetic: bool
) -> bytes:
    """Errors among the images that are not sent to review, by their share; the dot is where the bundle's limits lie."""
    figure = Figure(figsize=(WIDTH, 4.8), layout=page_layout())
    axes = figure.subplots()
    axes.plot(curve["coverage"], curve["risk"], color=BLUE, linewidth=2)
    if automatic["risk"] is not None:
        place, risk, bounds = (automatic[key] for key in ("coverage", "risk", "risk_interval"))
        text = f"{place:.1%} without review, {automatic['errors']} of {automatic['decided']} wrong"
        if bounds:
            axes.vlines(place, *bounds, color=VERMILLION, linewidth=2)
            text += "; 95 % interval over runs of images"
        axes.plot(place, risk, "o", color=VERMILLION, markersize=8, label=text)
        axes.legend(fontsize=TEXT, frameon=False, loc="upper left")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("Images not sent to review", fontsize=TEXT)
    axes.set_ylabel("Errors among them", fontsize=TEXT)
    axes.grid(color="#DDDDDD")
    axes.spines[["top", "right"]].set_visible(False)
    return as_png(figure, f"Risk and coverage: {part} part", synthetic)
