"""Where the tests' time goes, by file and class:

    bin/test --slow -p tests.durations --durations-to=tests/README.md

Seconds of the clock and of processor time (of the test's process and the children that it waited for; what ranks and
commands of the fork server take is on the clock only). A pytest plugin; with pytest-xdist each worker writes its rows
beside the file, which gets the table at the end: what stands before one that it has is kept.
"""

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import pytest

CLASSES = ("fast", "slow", "long")
SHOWN_SECONDS = 2.0
HEAD = "| file | class | tests | s | cpu s |\n|---|---|---|---|---|\n"


def pytest_addoption(parser):
    parser.addoption("--durations-to", type=Path, help="file of the table of durations")


def processor_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def class_of(item):
    return next((name for name in reversed(CLASSES) if item.get_closest_marker(name)), "fast")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    wall, cpu = time.perf_counter(), processor_seconds()
    yield
    table = item.config.getoption("--durations-to")
    row = [item.nodeid.partition("::")[0], class_of(item), time.perf_counter() - wall, processor_seconds() - cpu]
    if table:
        with rows_of(table, os.getpid()).open("a") as file:
            file.write(f"{json.dumps(row)}\n")


def rows_of(table, worker):
    return table.with_name(f"{table.name}.{worker}.rows")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    table = session.config.getoption("--durations-to")
    if not table or hasattr(session.config, "workerinput"):
        return
    files = list(table.parent.glob(f"{table.name}.*.rows"))
    before = table.read_text().partition(HEAD)[0] if table.exists() else ""
    table.write_text(before + as_table([json.loads(line) for file in files for line in file.read_text().splitlines()]))
    for file in files:
        file.unlink()


def as_table(rows):
    """Markdown: a line for each file and class of SHOWN_SECONDS or more, one for what is left, and the sums."""
    found = defaultdict(lambda: [0, 0.0, 0.0])
    for file, kind, wall, cpu in rows:
        for key in ((file.removeprefix("tests/"), kind), ("all", kind)):
            entry = found[key]
            entry[:] = entry[0] + 1, entry[1] + wall, entry[2] + cpu
    for file, kind in [key for key, entry in found.items() if key[0] != "all" and max(entry[1:]) < SHOWN_SECONDS]:
        small, other = found.pop((file, kind)), found["the others", kind]
        other[:] = (mine + more for mine, more in zip(other, small, strict=True))
    order = sorted(found, key=lambda key: (CLASSES.index(key[1]), key[0] != "all", -found[key][1]))
    return HEAD + "".join(
        "| {} | {} | {} | {:.0f} | {:.0f} |\n".format(file, kind, *found[file, kind]) for file, kind in order
    )
