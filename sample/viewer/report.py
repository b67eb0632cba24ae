"""Writes the report of a run's folder, or one page that compares several runs.

    dllm-report runs/my_run
    dllm-report runs/my_run runs/other_run -o comparison.html
    dllm-report runs/my_eval --inspect

The report of one run is report.html in its folder, which a run rewrites as it goes; this command adds trace.html, with
the unmasking of the report's samples, and links to it. Compared runs share their charts; their keys that differ and
their last evaluations stand in tables, paired by task.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from runtime.files import atomic_write_text
from runtime.report.inspect_log import write_logs
from runtime.report.page import REPORT, TRACE, build_page
from runtime.report.run_data import RunData, read_run
from runtime.text import print_error, print_text
from sample.viewer.trace import Chosen, Trace

COMPARISON = Path("comparison.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when the page is written, else 2 with one line on stderr."""
    options = _parse(arguments)
    try:
        runs = [read_run(folder) for folder in options.runs]
        if options.inspect:
            print_text("\n".join(str(path) for run in runs for path in write_logs(run)))
            return 0
        output, traced = options.output or COMPARISON, None
        if len(runs) == 1:
            output = options.output or options.runs[0] / REPORT
            traced = write_traces(runs[0], output.with_name(TRACE))
        atomic_write_text(output, build_page(runs, traced))
    except (ValueError, OSError) as error:
        print_error(str(error))
        return 2
    print_text(f"{output}: {len(runs)} runs compared" if len(runs) > 1 else f"{output}")
    return 0


def write_traces(run: RunData, path: Path) -> dict[int, str]:
    """Writes a page with the unmasking of the run's samples. Offset of a sample's line -> its place in that page;
    nothing, and no page, where none has a step map."""
    from sample.viewer.page import build_page as build_trace_page  # takes transformers, for the tokenizer
    from sample.viewer.page import find_origin

    groups: dict[str, list[Trace]] = {}
    places: dict[int, str] = {}
    for offset, row in run.samples:
        try:
            trace = Trace.from_row(row)
        except (ValueError, RecursionError):
            continue
        samples = groups.setdefault(trace.group, [])
        places[offset] = f"#group={list(groups).index(trace.group)}&sample={len(samples)}"
        samples.append(trace)
    if places:
        chosen = Chosen(groups, len(places), len(groups), unfinished=False)
        origin = find_origin(run.folder / "rollouts.jsonl", None, None)
        atomic_write_text(path, build_trace_page(f"{run.name}, samples of the report", chosen, origin))
    return places


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("-o", "--output", type=Path, help=f"the page (one run: its {REPORT}; several: {COMPARISON})")
    parser.add_argument(
        "--inspect",
        action="store_true",
        help="write runs of eval.py as logs of Inspect AI, RUN/inspect/*.json, instead",
    )
    return parser.parse_args(arguments)
