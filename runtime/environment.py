"""What a bug report needs to know of a machine and an installation: `dllm-env`. Standard library, and torch if it is
there."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtime.text import print_text

REPOSITORY = Path(__file__).resolve().parent.parent
SHOWN_VARIABLES = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|TORCH|PYTORCH|TRITON|MLP|SLURM)_[A-Z_0-9]*|HF_(HOME|HUB_OFFLINE|HUB_CACHE)|"
    r"(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|VIRTUAL_ENV|CONDA_PREFIX"
)
"""Whole names of environment variables that are printed. None holds a key."""
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|JWT|CRED|AUTH", re.IGNORECASE)
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def main() -> None:
    """The command: prints `report`."""
    for name, text in report():
        print_text(f"{name:<14} {text}")


def report() -> Iterator[tuple[str, str]]:
    """(name, text) lines."""
    yield "checkout", f"{REPOSITORY}, {_commit()}"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.platform()}, {_first_line('/etc/os-release', 'PRETTY_NAME=')}"
    yield "processor", f"{_first_line('/proc/cpuinfo', 'model name')}, {_cores()} cores{_instructions()}"
    yield "memory", f"{_first_line('/proc/meminfo', 'MemTotal')}, /dev/shm {_free_gib('/dev/shm')}"
    yield from _accelerators()
    yield "sandbox", f"bubblewrap {shutil.which('bwrap') or 'not installed'}, pyseccomp {installed('pyseccomp')}"
    for name, tested in _pins("requirements.txt"):
        found = installed(name)
        if found.split("+")[0] != tested:
            yield "differs", f"{name} {found}, tested with {tested}"
    yield "packages", ", ".join(f"{name} {installed(name)}" for name, _ in _pins("requirements.txt"))
    extras = [(name, installed(name)) for name, _ in _pins("requirements-extras.txt")]
    yield "optional", ", ".join(f"{name} {found}" for name, found in extras if found != "not installed") or "none"
    for name, value in sorted(os.environ.items()):
        if SHOWN_VARIABLES.fullmatch(name) and not _SECRET.search(name):
            yield "variable", f"{name}={value}"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _pins(file: str) -> list[tuple[str, str]]:
    """(package, version) of a requirements file's own lines."""
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return [(name, pin) for name, separator, pin in pins if separator]


def _accelerators() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except Exception as error:  # a broken installation is what the report is for
        yield "torch", f"cannot be imported: {type(error).__name__}: {error}"
        return
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda}, threads {torch.get_num_threads()}"
    if not torch.cuda.is_available():
        yield "gpus", "none that torch sees"
        return
    for index in range(torch.cuda.device_count()):
        of_gpu = torch.cuda.get_device_properties(index)
        size = f"{of_gpu.total_memory / 2**30:.0f} GiB, sm_{of_gpu.major}{of_gpu.minor}"
        yield f"gpu {index}", f"{of_gpu.name}, {size}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    yield "driver", _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"


def _commit() -> str:
    commit = _output("git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no")
    return (f"commit {commit}" if commit else "no git commit") + (", with changes" if changed else "")


def _output(*command: str) -> str:
    """The first line that a command prints, "" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


def _first_line(path: str, beginning: str) -> str:
    """What follows `beginning` in the first line of a file that begins so."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    found = next((line[len(beginning) :] for line in lines if line.startswith(beginning)), "unknown")
    return found.strip(' \t:="')


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _instructions() -> str:
    flags = set(_first_line("/proc/cpuinfo", "flags").split())
    return "".join(f", {name}" for name in _INSTRUCTIONS if name in flags)


def _free_gib(path: str) -> str:
    try:
        return f"{shutil.disk_usage(path).free / 2**30:.1f} GiB free"
    except OSError:
        return "absent"
