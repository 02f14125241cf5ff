"""The report's figures as inline SVG: text stays text, and black becomes the page's own ink."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from thumbnet_tf import plots
from thumbnet_tf.report_html import Markup, escape
from thumbnet_tf.stats import Calibration, wilson

_INK = "#010203"  # no figure uses it otherwise
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same file again for the same numbers
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
}
# a figure's colour -> the page's, which differs in dark mode
_COLOURS = {_INK: "currentColor", "#000000": "currentColor", "#000080": "var(--navy)", "#696969": "currentColor"}
_PANEL_INCHES = (3.6, 2.6)


def losses(metrics: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[tuple[str, Markup]]:
    """Yields titles and drawings: the legend, the total loss, the accuracy and every loss term that was measured.

    Args:
        metrics: as `plots.read_metrics` returns it; not empty.
    """
    with matplotlib.rc_context(_STYLE):
        legend = Figure(figsize=_PANEL_INCHES)
        legend.legend(handles=plots.curve_handles(metrics), loc="center", ncols=2, frameon=False)
        yield "legend", _svg(legend, "legend of the curves: colour and marker by method", "legend")
        for name in ("loss", "accuracy", *plots.measured_terms(metrics)):
            figure = Figure(figsize=_PANEL_INCHES, layout="constrained")
            plots.draw_panel(figure.subplots(), metrics, name)
            yield plots.TITLES[name], _svg(figure, f"curves over the epochs: {plots.TITLES[name]}", name)


def accuracy(rows: Sequence[Mapping[str, str]], dataset: str) -> Markup:
    """Draws accuracy over multiply-adds; for the arguments see `plots.accuracy_figure`."""
    with matplotlib.rc_context(_STYLE):
        figure = plots.accuracy_figure(rows, dataset, (4.8, 3.6))
        figure.axes[0].set_xlabel("multiply-adds an image, log scale")
        points = ", ".join(f"{row['method']} {100 * float(row['top1']):.1f} %" for row in rows)
        return _svg(figure, f"test accuracy over multiply-adds; {points}", "cost")


def reliability(calibrations: Mapping[str, Calibration], methods: Mapping[str, str]) -> Markup:
    """Draws the accuracy of answers over their score, and how many answers have it.

    Args:
        calibrations: by the name in the legend.
        methods: the method of each name, for its colour.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 4.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot((0, 1), (0, 1), color="gray", linewidth=0.8, linestyle=":", label="score = accuracy")
        for index, (name, found) in enumerate(calibrations.items()):
            colour, marker = plots.STYLES[methods[name]]
            used, bins = found.counts > 0, len(found.counts)
            share, total = found.accuracy[used], found.counts[used]
            ends = np.array([wilson(round(a * n), n) for a, n in zip(share.tolist(), total.tolist(), strict=True)]).T
            reach = np.abs(ends - share)
            style = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "none", "elinewidth": 0.8}
            above.errorbar(found.score[used], share, reach, label=f"{name}, ECE {found.error:.3f}", **style)
            width = 0.8 / bins / len(calibrations)
            places = (np.arange(bins) + 0.1) / bins + index * width
            below.bar(places, found.counts, width, align="edge", color=colour, alpha=0.7)
        above.set_ylabel("share that is right")
        above.legend(frameon=False, loc="lower right")
        below.set_ylabel("answers")
        below.set_xlabel("score of the answer")
        above.set_xlim(0, 1)
        above.set_ylim(0, 1.02)
        for axes in (above, below):
            axes.grid(alpha=0.3)
        errors = ", ".join(f"{name}: ECE {found.error:.3f}" for name, found in calibrations.items())
        return _svg(figure, f"reliability diagram; {errors}", "reliability")


def change_bar(before: float, after: float) -> Markup:
    """Returns a small bar from one share in [0, 1] (hollow) to another (filled); the numbers stand beside it."""
    x, y = 4 + 92 * before, 4 + 92 * after
    colour = "var(--bad)" if after < before else "var(--good)" if after > before else "var(--soft)"
    return Markup(
        '<svg class="bar" viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">'
        '<line x1="4" x2="96" y1="8" y2="8" stroke="var(--line)"/>'
        f'<line x1="{x:.1f}" x2="{y:.1f}" y1="8" y2="8" stroke="{colour}" stroke-width="2.5"/>'
        f'<circle cx="{x:.1f}" cy="8" r="3" fill="var(--card)" stroke="var(--soft)"/>'
        f'<circle cx="{y:.1f}" cy="8" r="3.5" fill="{colour}"/></svg>'
    )


def _svg(figure: Figure, label: str, name: str) -> Markup:
    """Returns a figure as an element of an HTML page.

    Args:
        figure: drawn under `_STYLE`.
        label: what it shows, for those who don't see it.
        name: makes the ids in it its own.
    """
    content = io.StringIO()
    figure.savefig(content, format="svg", bbox_inches="tight", pad_inches=0.03)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, own in _COLOURS.items():
        text = text.replace(colour, own)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
