"""The course of a run as one picture, from its metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INK = "#1f2933"
FAINT = "#9aa5b1"
COLOURS = ("#2f6fb3", "#c7502e", "#2d8a5f", "#7d4fa8", "#a67c1f")

STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
PANELS = (
    ("reward", ("reward/mean",)),
    ("response length (tokens)", ("completion_length",)),
    ("KL to what training.kl_to names", ("kl",)),
    ("loss", ("loss",)),
)


def smoothed(values: Sequence[float], width: float) -> list[float]:
    """Each value's mean with its neighbours, Gaussian weights of standard deviation `width` (in values)."""
    reach = math.ceil(3 * width)
    result = []
    for centre in range(len(values)):
        near = range(max(0, centre - reach), min(len(values), centre + reach + 1))
        weights = [math.exp(-0.5 * ((i - centre) / width) ** 2) for i in near]
        result.append(sum(w * values[i] for w, i in zip(weights, near, strict=True)) / sum(weights))
    return result


def points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which `key` is a finite number; the last row of a step counts."""
    found = {
        row["step"]: float(row[key])
        for row in rows
        if "step" in row and isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    }
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def _accuracy_keys(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("eval/") and key.endswith("accuracy"))
    return tuple(keys)


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> bool:
    """Draws the panels that `rows` have numbers for into the PNG `path`; False when there is none.

    ImportError without matplotlib.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[str, tuple[str, ...]]] = [
        (name, keys) for name, keys in PANELS if any(points(rows, key)[0] for key in keys)
    ]
    if _accuracy_keys(rows):
        panels.insert(1, ("accuracy on held-out tasks", _accuracy_keys(rows)))
    panels = panels[:4]
    if not panels:
        return False
    columns = 1 if len(panels) == 1 else 2
    lines = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * columns, 0.5 + 3.0 * lines), dpi=150, layout=layout)
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.02, ha="left")
        for place, (name, keys) in enumerate(panels):
            axes = figure.add_subplot(lines, columns, place + 1)
            axes.set_title(name, loc="left", fontsize=10.5)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.ticklabel_format(axis="y", scilimits=(-3, 5))
            axes.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            _draw_panel(axes, rows, keys)
        figure.savefig(path)
    return True


def _draw_panel(axes: Any, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Evaluations and short runs as points, longer ones as a thin line under a smoothed one."""
    for colour, key in zip(COLOURS, keys, strict=False):
        label = key.removeprefix("eval/").removesuffix("/accuracy")
        steps, values = points(rows, key)
        if key.startswith("eval/") or len(values) < 20:
            axes.plot(steps, values, "o-", color=colour, markersize=4, linewidth=1.6, label=label)
            continue
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.9)
        axes.plot(steps, smoothed(values, len(values) / 40), color=colour, linewidth=1.9, label=label)
    if len(keys) > 1:
        axes.legend(frameon=False, fontsize=8.5)


def draw_tradeoff(curves: Mapping[str, Sequence[tuple[float, float, float]]], path: Path, title: str) -> None:
    """Draws accuracy over tokens per forward into the PNG `path`: a curve a label, of (tokens per forward, accuracy,
    standard error). ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        axes = figure.add_subplot()
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("tokens per forward")
        axes.set_ylabel("accuracy (± standard error)")
        axes.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for i, (label, points) in enumerate(curves.items()):
            speeds, accuracies, errors = zip(*points, strict=True)
            axes.errorbar(speeds, accuracies, yerr=errors, fmt="o-", color=COLOURS[i % len(COLOURS)], label=label)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8.5)
        figure.savefig(path)
