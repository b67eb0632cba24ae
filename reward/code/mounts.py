"""What a sandbox shows of the machine's files: an interpreter, its packages, shared libraries, and nothing else."""

import functools
import glob
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRATCH_BYTES = 64 << 20
SCRATCH = ("/scratch", "/dev/shm")
SHARED_PREFIXES = ("/usr", "/usr/local")  # others than the interpreter's keep things there too
LOCALES_AND_ZONES = ("/usr/lib/locale", "/usr/share/zoneinfo")


@functools.cache
def mounts(python: str, *tools: str) -> list[str]:
    """bubblewrap's arguments for the root: system libraries, interpreter and packages to read, two small folders to
    write. tools: further programs that have to be there."""
    return [*_own(), *_shared(python, *tools), *_last()]


@functools.cache
def mounts_of_view(python: str) -> list[str]:
    """The same where the rest stands already, as in `open_view`: what was mounted there one by one is taken whole."""
    words = _own()
    for top in sorted({"/" + path.split("/")[1] for path in _shared(python, _bwrap()) if path.startswith("/")}):
        words += ["--symlink", os.readlink(top), top] if os.path.islink(top) else ["--ro-bind-try", top, top]
    return [*words, *_last()]


def _own() -> list[str]:
    """What no sandbox has in common with another one."""
    words = ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    for folder in SCRATCH:
        words += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", folder]
    return [*words, "--remount-ro", "/dev"]


def _last() -> list[str]:
    return ["--chdir", SCRATCH[0], "--remount-ro", "/"]


def _shared(python: str, *tools: str) -> list[str]:
    """What all sandboxes read."""
    words: list[str] = []
    visible = visible_paths(python)
    private = [str(folder) for folder in {ROOT, Path.cwd().resolve()} if any(_is_inside(folder, v) for v in visible)]
    shell = os.path.join(os.path.realpath("/bin"), "sh")
    for path in sorted({*visible, *private, shell, *tools}):
        words += [word for parent in reversed(Path(path).parents[:-1]) for word in ("--dir", str(parent))]
        words += ["--tmpfs", path] if path in private else ["--ro-bind", path, path]
    for link in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr/lib64"):
        if os.path.islink(link) and link not in visible:
            words += ["--symlink", os.readlink(link), link]
    for file in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        words += ["--ro-bind-try", file, file]
    return [*words, *(word for folder in private for word in ("--remount-ro", folder))]


def _bwrap() -> str:
    return os.path.realpath(shutil.which("bwrap") or "bwrap")


def visible_paths(python: str) -> list[str]:
    """What a program can read: the interpreter, its library, shared libraries, the installed packages."""
    paths = {python, *_library_folders(), *_standard_library(python), *package_folders(python)}
    return sorted(paths | {path for path in LOCALES_AND_ZONES if os.path.isdir(path)})


def _library_folders() -> list[str]:
    """Where this system keeps its shared libraries, libc among them."""
    architecture = sysconfig.get_config_var("MULTIARCH") or ""
    folders = [f"{top}/lib/{architecture}" for top in ("/usr", "") if architecture] + ["/usr/lib64", "/lib64"]
    folders = [folder for folder in folders if os.path.isdir(folder) and os.path.realpath(folder) == folder]
    if not any(os.path.exists(f"{folder}/libc.so.6") for folder in folders):
        folders += [folder for folder in ("/usr/lib", "/lib") if os.path.realpath(folder) == folder]
    return folders


def _standard_library(python: str) -> list[str]:
    """The standard library of `python`, and what else of its prefix it cannot do without."""
    prefix = os.path.dirname(os.path.dirname(python))
    if prefix not in SHARED_PREFIXES:
        folders = [f"{prefix}/{name}" for name in ("lib", "lib64")]
    else:
        folders = [f"{prefix}/{name}/{os.path.basename(python)}" for name in ("lib", "lib64")]
        folders += glob.glob(f"{prefix}/lib/libpython*.so*")
    return [path for path in folders if os.path.exists(path)]


def _is_inside(folder: Path, outer: str) -> bool:
    return str(folder) != outer and folder.is_relative_to(outer)


@functools.cache
def package_folders(python: str) -> list[str]:
    """The folders of installed packages that `python` can use."""
    if python != os.path.realpath(sys.executable):
        return [folder for folder in ("/usr/lib/python3/dist-packages",) if os.path.isdir(folder)]
    folders = [os.path.realpath(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    return [folder for folder in folders if os.path.isdir(folder)]


@functools.cache
def open_view(python: str) -> int:
    """A mount namespace with no more of the machine than sandboxes of `python` read and bubblewrap needs, as a
    descriptor. Only root can make one. Every user can pass its folders, which the machine's own (/root) may forbid, and
    what little is mounted there is taken over in less time."""
    info, info_inside = os.pipe()
    words = [*_shared(python, _bwrap()), "--dev-bind", "/dev", "/dev", "--dev-bind", "/proc", "/proc", "--dir", "/tmp"]
    with (
        os.fdopen(info, "rb") as told,
        subprocess.Popen(
            [_bwrap(), *words, "--info-fd", str(info_inside), "/bin/sh", "-c", "echo; read -r line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[info_inside],
        ) as holder,
    ):
        os.close(info_inside)
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise OSError("bubblewrap cannot mount")
        return os.open(f"/proc/{json.load(told)['child-pid']}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
