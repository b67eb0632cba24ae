"""Files of a public repository on GitHub, each checked against git's own checksum."""

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from data.hub import matches

API, RAW = "https://api.github.com", "https://raw.githubusercontent.com"
_SECONDS = 60.0


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. files: the checksum (SHA-1 of a git blob) of each file."""

    name: str
    commit: str
    files: dict[str, str]

    @staticmethod
    def at(name: str, revision: str) -> "Repository":
        """ValueError where GitHub does not give it. A revision that is a whole commit is taken as it is."""
        commit = revision
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            revision = "HEAD" if revision == "main" else revision  # the newest of whatever branch is the default
            commit = json.loads(_get(f"{API}/repos/{name}/commits/{revision}"))["sha"]
        tree = json.loads(_get(f"{API}/repos/{name}/git/trees/{commit}?recursive=1"))["tree"]
        return Repository(name, commit, {each["path"]: each["sha"] for each in tree if each["type"] == "blob"})

    def download(self, file: str, target: Path) -> None:
        """Makes `target` the repository's file, unless it is that already. ValueError where it cannot be had whole."""
        if file not in self.files:
            raise ValueError(f"github.com/{self.name} has no file {file} at commit {self.commit[:8]}")
        if target.is_file() and matches(target, self.files[file]):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(_get(f"{RAW}/{self.name}/{self.commit}/{file}"))
        if not matches(part, self.files[file]):
            part.unlink()
            raise ValueError(f"{file}: what came does not have GitHub's checksum {self.files[file]}: try again")
        os.replace(part, target)


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        hint = " (GitHub's limit for an address without an account: wait an hour)" if error.code in (403, 429) else ""
        raise ValueError(f"{url}: {error.code} {error.reason}{hint}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: {type(error).__name__}: {' '.join(str(error).split())}") from error
