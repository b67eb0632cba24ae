"""A script that launches itself, for tests of launchers."""

import textwrap

import pytest
from commands import ROOT

SCRIPT = """
import os, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from runtime import child, launch, ranks, rendezvous, stopping
from runtime.heartbeat import Heartbeat
from runtime.nodes import Node, this_node
from runtime.rendezvous import RendezvousConfig

folder = Path({folder!r})
rendezvous.SILENT_SECONDS, rendezvous.JOIN_SECONDS, rendezvous.BEAT_SECONDS = {silent}, {silent}, 0.5

def work():
    {work}

child.follow_launcher()
stopping.listen()
if not child.is_launched():
    node = this_node(os.environ) if "MLP_WORKER_NUM" in os.environ else Node()
    try:
        settings = RendezvousConfig({launcher!r}, {wait}, {ssh!r}, {user!r})
        status = launch.launch({processes}, node, settings, folder, "auto")
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        status = 2
    except stopping.Stopped as stop:
        status = 128 + stop.number
    sys.exit(status)
{before}
ranks.join("cpu", {timeout})
try:
    work()
except stopping.Stopped as stop:
    sys.stdout.write(f"saved {{ranks.rank()}}\\n")
    sys.exit(128 + stop.number)
except child.FailedElsewhere:
    sys.exit(child.STOPPED_ELSEWHERE)
finally:
    ranks.leave()
"""


@pytest.fixture
def script(tmp_path):
    """script(work, ...) -> the command line that starts it."""

    def write(work, **named):
        path = tmp_path / "script.py"
        work = textwrap.indent(textwrap.dedent(work), "    ").strip()
        usual = {"before": "", "processes": 2, "launcher": "each_node", "wait": 20.0, "ssh": "false", "user": "me"}
        usual |= {"timeout": 30.0, "silent": 30.0, "folder": str(tmp_path / "run")}
        path.write_text(SCRIPT.format(root=str(ROOT), work=work, **usual | named))
        return [path]

    return write
