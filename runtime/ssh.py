"""Starts this command on another node over ssh, and prints its output under the node's name."""

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from runtime.nodes import Node
from runtime.text import printable

PASSED = re.compile(
    "(MLP|HF|HUGGINGFACE|WANDB|NCCL|GLOO|OMP|MKL|CUDA|TORCH|PYTHON)_.*|(LD_LIBRARY_)?PATH|PYTHONPATH|VIRTUAL_ENV|"
    ".*_proxy|.*_PROXY"
)
"""Names of the environment's variables that the other node needs."""


@dataclass
class SshProcess:
    """An ssh that runs this command on another node, and the thread that prints its output."""

    process: subprocess.Popen[str]
    printer: threading.Thread

    def end(self) -> None:
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.terminate()
        self.printer.join(5.0)


def start_over_ssh(node: Node, index: int, ssh: str, user: str, more: Mapping[str, str]) -> SshProcess:
    """Runs this command on node `index`, with `more` in its environment. ssh: the program and its options."""
    passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
    print(f"starting {node.name(index)} over ssh", flush=True)
    helper = subprocess.Popen(
        [*shlex.split(ssh), f"{user}@{node.hosts[index]}", "exec sh -s"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert helper.stdin is not None and helper.stdout is not None
    printer = threading.Thread(target=_print_lines, args=(helper.stdout, f"[node {index}] "), daemon=True)
    printer.start()
    try:
        helper.stdin.write(script({**passed, **more}, os.getcwd(), _this_command()))
        helper.stdin.close()
    except BrokenPipeError:
        pass
    return SshProcess(helper, printer)


def script(environment: Mapping[str, str], folder: str, command: list[str]) -> str:
    """Shell text that runs the command in the folder with more environment. It goes over standard input, so that no
    value stands in a list of processes; only names that a shell cannot export are set by env(1)."""
    exports, odd = [], []
    for name, value in environment.items():
        if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            exports.append(f"export {name}={shlex.quote(value)}")
        else:
            odd.append(f"{name}={value}")
    arguments = shlex.join(["env", *odd, *command] if odd else command)
    return "\n".join([*exports, f"cd {shlex.quote(folder)} && exec {arguments} < /dev/null", ""])


def _this_command() -> list[str]:
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _print_lines(stream: TextIO, prefix: str) -> None:
    for line in stream:
        print(f"{prefix}{printable(line.rstrip())}", flush=True)
