"""What distinguishes one checkpoint's weights from another's, and the fingerprint of their base that adapters keep.

It reads the files of the weights once in a process, several at a time, at about the speed of the disk.
"""

import functools
import hashlib
import json
import logging
from pathlib import Path

from models import lora
from models.folder import read_json, weight_files
from models.spec import CheckpointSpec
from runtime.files import file_digest, naming

BASE = "adapter_base.json"
"""In a folder of adapters: the base that they were trained on, and its fingerprint then."""

logger = logging.getLogger(__name__)


def fingerprint(folder: Path) -> str:
    """Digest of the names and contents of the files that hold the folder's weights: of its config.json where it has
    none, as they are drawn then; of its adapters, with what they keep of their base, where it has those."""
    if (folder / lora.CONFIG).is_file():
        files = [path for path in (folder / lora.WEIGHTS, folder / BASE) if path.is_file()]
    else:
        try:
            files = weight_files(folder)
        except ValueError:
            files = [folder / "config.json"]
    digests = {path.name: digest_of(path) for path in files}
    return hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest()


def digest_of(path: Path) -> str:
    """`file_digest` of a whole file, which is read again only where its size or time has changed."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, size: int, time: int) -> str:
    return file_digest(path, size)


def write_base(folder: Path, base: str, print_of_base: str) -> None:
    """Keeps in a folder of adapters what they were trained on."""
    with naming(folder / BASE):
        (folder / BASE).write_text(json.dumps({"base": base, "fingerprint": print_of_base}, indent=2) + "\n")


def kept_base(folder: Path) -> str | None:
    """The fingerprint of the base that a folder of adapters keeps; None where it keeps none, as one that peft wrote.
    ValueError where it is damaged."""
    if not (folder / BASE).is_file():
        return None
    kept = read_json(folder / BASE).get("fingerprint")
    if not isinstance(kept, str):
        raise ValueError(f"{folder / BASE} is damaged: it has no fingerprint. Copy the folder again.")
    return kept


def require_base(spec: CheckpointSpec) -> None:
    """ValueError where the base of a folder of adapters holds other weights than those that they were trained on. One
    that keeps no fingerprint of them is named in a warning."""
    if spec.base is None:
        return
    kept, base = kept_base(spec.folder), spec.base.folder
    if kept is None:
        logger.warning("the adapters in %s keep no fingerprint of their base: %s is taken as it is", spec.folder, base)
        return
    if (found := fingerprint(base)) != kept:
        raise ValueError(
            f"the adapters in {spec.folder} were trained on other weights than {base} holds now (fingerprint "
            f"{kept[:12]} then, {found[:12]} now): put those weights back there, or a link to where they are now; for "
            "the weights of now, train adapters anew."
        )
