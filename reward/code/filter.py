"""The system calls that a sandbox refuses, where libseccomp and its Python binding are installed.

Without them the sandbox holds by namespaces, limits and control groups; the filter takes the kernel's rarer doors away
as well, most of which a program that answers tests never opens.
"""

import errno
import functools
import importlib
import socket
import tempfile
from contextlib import suppress
from types import ModuleType

INSTALL_HINT = "pip install pyseccomp, beside libseccomp2 of the system"
BINDINGS = ("seccomp", "pyseccomp")  # libseccomp's own (Debian: python3-seccomp), and its twin on PyPI
NAMESPACES = (
    *(0x00020000, 0x02000000, 0x04000000, 0x08000000),  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC
    *(0x10000000, 0x20000000, 0x40000000),  # CLONE_NEWUSER, NEWPID, NEWNET
)
RLIMIT_CPU = 0
KILLED = 128 + 9
"""How bubblewrap tells of a process that was killed; a program that leaves with this code would look like one."""

REFUSED = (
    *("keyctl", "add_key", "request_key"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsmount"),
    *("fsconfig", "fspick", "mount_setattr", "name_to_handle_at", "open_by_handle_at", "fanotify_init", "quotactl"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "bpf", "perf_event_open"),
    *("shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl"),
    *("semtimedop", "mq_open", "mq_unlink", "memfd_create", "memfd_secret", "vmsplice"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff", "reboot"),
    *("syslog", "acct", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "iopl", "ioperm", "modify_ldt"),
    *("migrate_pages", "move_pages", "nfsservctl", "lookup_dcookie", "vhangup"),
)


@functools.cache
def filter_program(first: bool = True) -> bytes | None:
    """The filter as a compiled program for bubblewrap's --seccomp, None where no binding can be loaded. first: the
    program is the first process of its namespace, and none that waits for it has to leave as it left."""
    for name in BINDINGS:
        with suppress(ImportError, RuntimeError, OSError):
            return _compiled(importlib.import_module(name), first)
    return None


def _compiled(seccomp: ModuleType, first: bool) -> bytes:
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    refused = seccomp.ERRNO(errno.EPERM)

    def add(action: int, call: str, *conditions: object) -> None:
        with suppress(OSError, ValueError, RuntimeError):  # a call that this machine or library does not know
            rules.add_rule(action, call, *conditions)

    for call in REFUSED:
        add(refused, call)
    for flag in NAMESPACES:
        add(refused, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    add(seccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags lie in memory, out of a filter's sight; libc takes clone
    add(seccomp.ERRNO(errno.EAFNOSUPPORT), "socket", seccomp.Arg(0, seccomp.NE, socket.AF_UNIX))
    add(refused, "setrlimit", seccomp.Arg(0, seccomp.EQ, RLIMIT_CPU))
    add(refused, "prlimit64", seccomp.Arg(1, seccomp.EQ, RLIMIT_CPU), seccomp.Arg(2, seccomp.NE, 0))
    for call in ("exit", "exit_group") if first else ():
        add(seccomp.KILL_PROCESS, call, seccomp.Arg(0, seccomp.MASKED_EQ, 0xFF, KILLED))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
