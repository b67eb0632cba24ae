"""The study's results as tables in Markdown."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.study_steps.compare import Difference, holm, paired
from benchmarks.study_steps.runs import Result
from benchmarks.study_steps.variants import BASE, VARIANTS

HEADER = ("variant", "seeds", "updates", "M packed tokens", "before", "after", "against TraceRL", "tokens per forward")


def by_variant(results: Iterable[Result]) -> dict[str, dict[int, Result]]:
    """variant -> seed -> result, in the order of VARIANTS and of seeds."""
    found: dict[str, dict[int, Result]] = {name: {} for name in VARIANTS}
    for result in sorted(results, key=lambda result: result.run.seed):
        found[result.run.variant][result.run.seed] = result
    return {name: runs for name, runs in found.items() if runs}


def of_stage1(results: Iterable[Result]) -> Iterator[str]:
    """A row a variant; two seeds choose, so there is no interval."""
    runs = by_variant(results)
    yield from _head(HEADER)
    for name, seeds in runs.items():
        gap = paired(*(_accuracies(runs.get(which, {})) for which in (name, BASE)))
        yield _row(name, seeds, "" if name == BASE or gap is None else f"{gap.mean:+.3f} ({gap.pairs})")


def of_stage2(results: Iterable[Result]) -> Iterator[str]:
    """A row a variant, with the 95% intervals of its paired differences and p of accuracy corrected by Holm."""
    runs = by_variant(results)
    gaps = {name: paired(_accuracies(seeds), _accuracies(runs.get(BASE, {}))) for name, seeds in runs.items()}
    tested = [name for name, gap in gaps.items() if name != BASE and gap and gap.p is not None]
    corrected = dict(zip(tested, holm([gaps[name].p for name in tested]), strict=True))  # type: ignore[union-attr,misc]
    yield from _head((*HEADER, "p, Holm", "tokens per forward against TraceRL's"))
    for name, seeds in runs.items():
        gap = None if name == BASE else gaps[name]
        p = f"{corrected[name]:.3f}" if name in corrected else ""
        yield f"{_row(name, seeds, _interval(gap))} {p} | {_faster(seeds, runs.get(BASE, {})) if gap else ''} |"


def of_blocks(results: Iterable[Result]) -> Iterator[str]:
    """A row a size of a block and variant."""
    sized: dict[int, list[Result]] = {}
    for result in results:
        sized.setdefault(result.run.block_size, []).append(result)
    yield from _head(("block", *HEADER))
    for size, of_size in sorted(sized.items()):
        runs = by_variant(of_size)
        for name, seeds in runs.items():
            gap = None if name == BASE else paired(_accuracies(seeds), _accuracies(runs.get(BASE, {})))
            yield f"| {size} {_row(name, seeds, _interval(gap))}"


def core_hours(results: Iterable[Result]) -> float:
    return sum(result.cpu_seconds for result in results) / 3600


def _head(columns: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _row(name: str, seeds: Mapping[int, Result], against: str) -> str:
    runs = list(seeds.values())
    mean = {
        field: statistics.mean(getattr(run, field) for run in runs)
        for field in ("updates", "packed_tokens", "before", "accuracy", "speed_before", "speed")
    }
    cells = (
        VARIANTS[name].label,
        " ".join(map(str, sorted(seeds))),
        f"{mean['updates']:.0f}",
        f"{mean['packed_tokens'] / 1e6:.3f}",
        _each(runs, "before"),
        _each(runs, "accuracy"),
        against,
        f"{mean['speed_before']:.2f} -> {mean['speed']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _each(runs: Sequence[Result], field: str) -> str:
    """The mean, and of up to three seeds each one's."""
    values = [getattr(run, field) for run in runs]
    if len(values) > 3 or len(values) == 1:
        return f"{statistics.mean(values):.3f}"
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def _interval(gap: Difference | None) -> str:
    if gap is None:
        return ""
    return f"{gap.mean:+.3f}" if gap.half_width is None else f"{gap.mean:+.3f} +- {gap.half_width:.3f}"


def _faster(seeds: Mapping[int, Result], base: Mapping[int, Result]) -> str:
    """Tokens per forward as a change of TraceRL's of the same seed, in percent."""
    gap = paired({seed: seeds[seed].speed / base[seed].speed for seed in seeds.keys() & base}, dict.fromkeys(base, 1.0))
    assert gap is not None
    return f"{gap.mean:+.0%}" if gap.half_width is None else f"{gap.mean:+.0%} +- {gap.half_width:.0%}"


def _accuracies(seeds: Mapping[int, Result]) -> dict[int, float]:
    return {seed: result.accuracy for seed, result in seeds.items()}
