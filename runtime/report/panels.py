"""Which curves a report shows, in which order and under which words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.report.run_data import Curve

MOST_POINTS = 400


@dataclass(frozen=True)
class Panel:
    """metrics: a pattern of the metrics that belong here, whole; its first group, if any, is a curve's label. note:
    what they mean. kind: lines, or areas on top of each other. in_charts: False for what metrics.jsonl alone needs."""

    title: str
    metrics: str
    note: str = ""
    kind: Literal["lines", "stack"] = "lines"
    in_charts: bool = True


PANELS = (
    Panel("reward", r"reward/mean(?:\((.+)\))?", "mean over a step's responses, and over those of each source"),
    Panel("parts of the reward", r"reward/(?!left_out|std)(.+)_(?:mean|score)", "mean of each"),
    Panel(
        "accuracy", r"eval/(?:(.+)/)?accuracy", "held-out tasks, share of right answers, one standard error each way"
    ),
    Panel("reward on held-out tasks", r"eval/(?:(.+)/)?reward", "mean"),
    Panel("loss of held-out examples", r"validation/(.+)", "nats a token"),
    Panel("loss a token", r"nll(?:\((.+)\))?", "nats"),
    Panel("right answers in training", r"accuracy\((.+)\)", "share of each source"),
    Panel("response length", r"completion_length(?:\((.+)\))?", "tokens"),
    Panel("length on held-out tasks", r"eval/(?:(.+)/)?length", "tokens"),
    Panel("responses without a stop", r"truncated", "share"),
    Panel("tokens per forward", r"tokens_per_forward", "response tokens for each denoising step"),
    Panel("tokens per forward, held-out tasks", r"eval/(?:(.+)/)?tokens_per_forward", ""),
    Panel("KL", r"kl", "to what training.kl_to names"),
    Panel("sampler against trainer", r"(mismatch_kl|mismatch_abs)", "the same weights: 0 in fp32 with an exact cache"),
    Panel("entropy", r"entropy", "nats a token, as the sampled tokens' own log-probabilities estimate it"),
    Panel("tokens outside the clip range", r"clip_ratio", "share"),
    Panel("loss", r"loss", ""),
    Panel("objective", r"objective/(.+)", "a trained token"),
    Panel("gradient norm", r"grad_norm", "before clipping"),
    Panel("learning rate", r"learning_rate", ""),
    Panel("value model", r"value/(explained_variance)", "share of the returns' variance that it foretold"),
    Panel("groups that taught nothing", r"groups_dropped/(.+)", "a step"),
    Panel("memory", r"memory/(.+)_gib", "GiB"),
    Panel("time by phase", r"time/(?!step_)(.+)_seconds", "seconds of a step", "stack"),
    Panel("tokens per second", r"tokens_per_second", "of sampling"),
    Panel("tokens per second of updates", r"update_tokens_per_second", "packed"),
    Panel("share of the GPU's peak", r"mfu", "of updates"),
    Panel("", r"time/(?:step_seconds|at)|reward/left_out", in_charts=False),
)


def panels_of(curves: Sequence[Mapping[str, Curve]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Charts for report.js. curves: of each run; names: theirs. One run: a chart a panel, a curve a metric. Several: a
    chart a metric, a curve a run. The last charts, marked `more`, have the metrics that no panel names."""
    left = {metric: None for run in curves for metric in run}
    charts: list[dict[str, Any]] = []
    for panel in PANELS:
        found = {metric: match for metric in left if (match := re.fullmatch(panel.metrics, metric))}
        for metric in found:
            del left[metric]
        if not panel.in_charts or not found:
            continue
        whole = "all" if len(found) > 1 else ""
        labels = {metric: (match.groups() or ("",))[0] or whole for metric, match in found.items()}
        charts += _charts(panel, labels, curves, names)
    errors = {metric for metric in left if metric.endswith("stderr")}
    for metric in sorted(left.keys() - errors):
        charts += [chart | {"more": True} for chart in _charts(Panel(metric, ""), {metric: ""}, curves, names)]
    return charts


def _charts(
    panel: Panel, labels: Mapping[str, str], curves: Sequence[Mapping[str, Curve]], names: Sequence[str]
) -> list[dict[str, Any]]:
    chart = {"title": panel.title, "note": panel.note, "kind": panel.kind}
    if len(curves) == 1:
        return [chart | {"curves": [_curve(curves[0], metric, label, 0) for metric, label in labels.items()]}]
    charts = []
    for metric, label in labels.items():
        drawn = [_curve(run, metric, name, i) for i, (run, name) in enumerate(zip(curves, names, strict=True))]
        title = f"{panel.title}: {label}" if label else panel.title
        charts.append(chart | {"title": title, "kind": "lines", "curves": [one for one in drawn if one["x"]]})
    return charts


def _curve(curves: Mapping[str, Curve], metric: str, label: str, run: int) -> dict[str, Any]:
    steps, values = curves.get(metric, ([], []))
    curve: dict[str, Any] = {"label": label, "run": run, "dots": metric.startswith(("eval/", "validation/"))}
    error = curves.get(metric.removesuffix("accuracy") + "stderr") if metric.endswith("accuracy") else None
    if error is not None and error[0] == steps:
        return curve | {"x": steps, "y": _rounded(values), "error": _rounded(error[1])}
    x, y = thinned(steps, values)
    return curve | {"x": x, "y": _rounded(y)}


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most MOST_POINTS points: of as many neighbours each the middle step and the mean."""
    size = -(-len(steps) // MOST_POINTS)
    if size <= 1:
        return list(steps), list(values)
    parts = range(0, len(steps), size)
    x = [steps[min(i + size // 2, len(steps) - 1)] for i in parts]
    return x, [sum(values[i : i + size]) / len(values[i : i + size]) for i in parts]


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
