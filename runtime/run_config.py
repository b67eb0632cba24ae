"""config.yaml of a run's folder: the settings that it was begun with, and how those of now differ."""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.hidden import Hidden, actual, holds_hidden, shown
from configs.load import RUN_HEADER, flat_run
from configs.tree import flat
from runtime.files import atomic_write_text
from runtime.text import mask_passwords

logger = logging.getLogger(__name__)

_DIGEST = "# Digest of the lines below: "
_HIDDEN = "# Hashes of values that are not written: "


def write(path: Path, resolved: Mapping[str, Any]) -> None:
    """Writes the settings. A value from an environment variable and a password in a URL are written as text that stands
    for them, with a salted hash by which `differences` knows them again."""
    settings = _masked(resolved)
    hashes = {key: _hash(actual(value)) for key, value in flat(settings).items() if holds_hidden(value)}
    text = f"{_HIDDEN}{json.dumps(hashes)}\n" if hashes else ""
    text += OmegaConf.to_yaml(shown(settings))
    atomic_write_text(path, f"{RUN_HEADER}{_DIGEST}{_digest(text)}\n{text}")


def differences(path: Path, resolved: Mapping[str, Any], uncompared_keys: Collection[str]) -> str:
    """One line for each key whose value in the file is not that of now, aligned; empty when none differs. A file that
    is not as it was written is named in a warning. ValueError where it cannot be read, or is no run's."""
    settings = _masked(resolved)
    here = flat(_as_read(OmegaConf.to_yaml(shown(settings))))
    there, hashes = _read(path, here)
    for key, value in flat(settings).items():
        if key in there and (key in hashes or holds_hidden(value)):
            there[key] = _compared(there[key], hashes.get(key), value)
    return _differences(there, here, uncompared_keys)


def _compared(there: Any, hashed: str | None, here: Any) -> Any:
    """What the file has for a key, as to be compared with `shown(here)`: that itself where the values are one."""
    same = _is_hash_of(hashed, actual(here)) if hashed else there in (actual(here), shown(here))
    if same:
        return shown(here)
    return f"{there} (another value)" if there == shown(here) else there


def _hash(value: Any, salt: str | None = None) -> str:
    salt = salt or secrets.token_hex(16)
    digest = hashlib.scrypt(json.dumps(value).encode(), salt=salt.encode(), n=2**14, r=8, p=1, dklen=32)
    return f"{salt}:{digest.hex()}"


def _is_hash_of(hashed: str, value: Any) -> bool:
    return hmac.compare_digest(hashed, _hash(value, hashed.partition(":")[0]))


def public(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as others may see them."""
    settings: dict[str, Any] = shown(_masked(resolved))
    return settings


def _masked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with passwords in URLs `Hidden`."""

    def mask(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: mask(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [mask(entry) for entry in value]
        if isinstance(value, str) and not isinstance(value, Hidden) and (text := mask_passwords(value)) != value:
            return Hidden(text, value)
        return value

    return {key: mask(value) for key, value in settings.items()}


def _read(path: Path, here: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in the file, flat, and the hashes of the values that it hides."""
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
        hashes = next((line for line in text.splitlines()[1:3] if line.startswith(_HIDDEN)), f"{_HIDDEN}{{}}")
        return flat_run(text, here), dict(json.loads(hashes.removeprefix(_HIDDEN)))
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
