"""config.yaml of a run's folder: the settings that it was begun with, and how those of now differ."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.load import RUN_HEADER, flat_run
from configs.tree import flat
from runtime.files import atomic_write_text

logger = logging.getLogger(__name__)

_DIGEST = "# Digest of the lines below: "


def write(path: Path, resolved: Mapping[str, Any]) -> None:
    text = OmegaConf.to_yaml(dict(resolved))
    atomic_write_text(path, f"{RUN_HEADER}{_DIGEST}{_digest(text)}\n{text}")


def differences(path: Path, resolved: Mapping[str, Any], uncompared_keys: Collection[str]) -> str:
    """One line for each key whose value in the file is not that of now, aligned; empty when none differs. A file that
    is not as it was written is named in a warning. ValueError where it cannot be read, or is no run's."""
    here = flat(_as_read(OmegaConf.to_yaml(dict(resolved))))
    return _differences(_read(path, here), here, uncompared_keys)


def _read(path: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error
    if not text.startswith(RUN_HEADER):
        raise ValueError(
            f"{path} was not written by a run, or is damaged. Choose another experiment.project, or move that file "
            "away."
        )
    second, _, rest = text.removeprefix(RUN_HEADER).partition("\n")
    if second.startswith(_DIGEST) and second.removeprefix(_DIGEST) != _digest(rest):
        logger.warning("%s was damaged or edited since the run wrote it", path)
    try:
        return flat_run(text, here)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged ({str(error).splitlines()[0]}). Put a copy of it back, or begin another run from the "
        f"newest checkpoint: experiment.project=NAME experiment.resume={path.parent / 'ckpt'}/step-NUMBER."
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _as_read(text: str) -> dict[str, Any]:
    """YAML as a run reads it back: tuples are lists, for example."""
    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)  # type: ignore[return-value]


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], uncompared_keys: Collection[str]) -> str:
    absent = object()
    keys = [key for key in {**there, **here} if key not in uncompared_keys]
    changed = [key for key in keys if there.get(key, absent) != here.get(key, absent)]

    def shown(values: Mapping[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"

    width = max(map(len, changed), default=0)
    return "\n".join(f"  {key:<{width}}  {shown(there, key)} -> {shown(here, key)}" for key in changed)
