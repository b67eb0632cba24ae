"""Data from a hub: one file with a resumable, checked download, or a user's whole data set by its id.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are those of huggingface_hub and are read when it is first imported.
"""

import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HUB_ID = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]%:-]+))?(@(?P<revision>[\w./-]+))?"
)
_CHUNK_BYTES = 1 << 20


def download(repo: str, file: str, revision: str, part: Path) -> str:
    """Fetches a data set repository's file into `part`; the commit that it is of.

    An interrupted download resumes where it stopped. Offline, the file comes from the hub's cache.
    ValueError where the hub does not give the file, is not reached, or where what came does not have the hub's
    checksum.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    part.parent.mkdir(parents=True, exist_ok=True)
    if constants.HF_HUB_OFFLINE:
        cached = try_to_load_from_cache(repo, file, revision=revision, repo_type="dataset")
        if not isinstance(cached, str):
            raise ValueError(
                f"{repo}, file {file}: offline (HF_HUB_OFFLINE is set) and not in the cache {constants.HF_HUB_CACHE}; "
                "download it where there is a network"
            )
        shutil.copyfile(cached, part)
        snapshots = next(parent for parent in Path(cached).parents if parent.name == "snapshots")
        return Path(cached).relative_to(snapshots).parts[0]
    with _explained(repo, file, revision):
        remote = get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset", revision=revision))
        commit, etag = remote.commit_hash, remote.etag
        if not commit or not etag:
            raise ValueError("the answer names no commit or no checksum: is HF_ENDPOINT a hub?")
        url = hf_hub_url(repo, file, repo_type="dataset", revision=commit)
        partial = part.with_name(f"{part.name}.{re.sub(r'[^0-9A-Za-z]', '', etag)}.partial")
        resumed = _fetch(url, partial, remote.size, file)
        if resumed and not matches(partial, etag):
            partial.unlink()
            _fetch(url, partial, remote.size, file)
        if not matches(partial, etag):
            partial.unlink()
            raise ValueError(f"what came does not have the hub's checksum {etag}: try again")
        os.replace(partial, part)
    return commit


def matches(path: Path, etag: str) -> bool:
    """Whether the file has the checksum that the hub names: SHA-256 of large files, git's SHA-1 of a blob otherwise.

    An etag of neither form, as some mirrors send, cannot be checked: a warning.
    """
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return sha256(path) == etag
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        return _digest(path, digest) == etag
    warnings.warn(
        f"{path.name}: the hub's checksum {etag!r} is of no known kind, only the size was checked", stacklevel=2
    )
    return True


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return _digest(path, hashlib.sha256())


def fetch_dataset(name: str, folder: Path) -> Path:
    """The rows of a data set on the hub as one parquet file below `folder`/hub, fetched once through `datasets`.

    `name` is hub:OWNER/NAME[/CONFIG][:SPLIT][@REVISION]; the split is train unless given.
    ValueError for another form of name and for what the hub does not give.
    """
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r}: a data set on the hub is written hub:OWNER/NAME[/CONFIG][:SPLIT][@REVISION]")
    repo, config, split, revision = match["repo"], match["config"], match["split"] or "train", match["revision"]
    path = folder / "hub" / f"{_file_name(repo, config, split, revision)}.parquet"
    if path.is_file():
        return path
    try:
        from datasets import Dataset, load_dataset
    except ImportError:
        raise ValueError(f"{name}: data sets of the hub need the package datasets: pip install datasets") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = load_dataset(repo, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error
    assert isinstance(rows, Dataset)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        rows.to_parquet(Path(aside) / path.name)
        os.replace(Path(aside) / path.name, path)
    return path


def _file_name(repo: str, *parts: str | None) -> str:
    """A readable file name, with a hash where letters had to be replaced so that no two data sets share one."""
    whole = "--".join([repo.replace("/", "--"), *(part for part in parts if part)])
    safe = re.sub(r"[^\w.-]", "_", whole)
    return safe if safe == whole else f"{safe}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _fetch(url: str, partial: Path, num_bytes: int | None, label: str) -> bool:
    """Appends to `partial` what it lacks, with a progress bar. True if some of it was there before."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial.touch()
    with partial.open("r+b") as file:
        start = file.seek(0, os.SEEK_END)
        if num_bytes is not None and start > num_bytes:
            start = file.seek(0)
            file.truncate()
        http_get(
            url,
            file,
            resume_size=start,
            headers=build_hf_headers(),
            expected_size=num_bytes,
            displayed_filename=label,
        )
    return start > 0


@contextmanager
def _explained(repo: str, file: str, revision: str) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    place = f"{constants.ENDPOINT}/datasets/{repo}, file {file}, revision {revision}"
    try:
        yield
    except GatedRepoError:
        raise ValueError(f"{place}: gated. Accept its terms on that page, then log in: hf auth login") from None
    except Exception as error:  # the errors of the network belong to httpx or httpx2, by the version of huggingface_hub
        raise ValueError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
