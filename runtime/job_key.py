"""The key of a job of several nodes: who holds it may join the job, end it, or learn where its ranks are.

It comes from the environment (KEY_VARIABLE, which the ssh launcher sets too), or node 0 makes one for each start and
writes it into the run's folder, readable by its user alone, where the launchers of the other nodes find it.
"""

import contextlib
import os
import secrets
from pathlib import Path

from runtime.files import atomic_write_text

KEY_VARIABLE = "DLLM_RL_KEY"
FILE = ".rendezvous-key"


class JobKey:
    """The key as one launcher has it."""

    def __init__(self, folder: Path):
        self.file = Path(folder) / FILE
        self.given = os.environ.get(KEY_VARIABLE)
        self._made: str | None = None

    def make(self) -> str:
        """Node 0's: the given one, or a new one in the file. OSError where the file cannot be written."""
        if self.given:
            return self.given
        self._made = secrets.token_hex(32)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.file, self._made, mode=0o600)
        return self._made

    def find(self) -> str | None:
        """Another node's: the given one, or what the file holds now, which may be of an earlier start; None without."""
        if self.given:
            return self.given
        try:
            return self.file.read_text(encoding="utf-8") or None
        except OSError:
            return None

    def remove(self) -> None:
        """Deletes the file that `make` wrote, and the folder where nothing else is in it."""
        if self._made is not None and self.find() == self._made:
            with contextlib.suppress(OSError):
                self.file.unlink()
                self.file.parent.rmdir()
