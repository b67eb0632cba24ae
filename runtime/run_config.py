"""config.yaml of a run's folder: the settings that it was begun with, and how those of now differ."""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.commands import Command
from configs.effects import OF_ONE_START, effect_between, note
from configs.hidden import Hidden, actual, holds_hidden, shown
from configs.load import RUN_HEADER, find, flat_run
from configs.sets import SET_KEYS, besides_places
from configs.tree import flat
from runtime.files import atomic_write_text
from runtime.text import mask_passwords

logger = logging.getLogger(__name__)

_DIGEST = "# Digest of the lines below: "
_HIDDEN = "# Hashes of values that are not written: "
_SOURCES = "# Digests of what these keys name: "
_COMMENTS = 3
REWARD_KEY = "reward.function"
"""Names code that may be edited without a word: a step that a broken reward could not grade is graded again."""
CODE_KEYS = (
    *("training.objective", "training.advantage", "training.method"),
    *("rollout.strategy", "rollout.target", "evaluation.strategy", "evaluation.target"),
)
"""Keys that name other code of a user's: a run is resumed after it was edited, and one line names it."""
_FOLDERS = {"dataset.folder": "dataset."}
"""Keys that locate others -> how those begin."""


@dataclass(frozen=True)
class Source:
    """What a key names, a checkpoint, a data file or code: where it is, and a digest of what it holds."""

    path: str
    digest: str


@dataclass(frozen=True)
class Settings:
    """What a run is set to. resolved: nested values; command: the one that runs; sources: dotted key -> what it names,
    of models and data; names: dotted key -> as it was typed, where that is another spelling."""

    resolved: Mapping[str, Any]
    command: Command | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """Between the settings that a run was begun with and those of now. refused: changes of its result, aligned lines;
    taken: those that leave it as it is, for people; contents: whether files that keys name hold something else.
    has_digests: whether the run keeps those of what its keys name."""

    refused: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    contents: bool = False
    has_digests: bool = True


def write(path: Path, settings: Settings) -> None:
    """Writes the settings. A value from an environment variable and a password in a URL are written as text that stands
    for them, with a salted hash by which `changes` knows them again."""
    resolved = _masked(settings.resolved)
    hashes = {key: _hash(actual(value)) for key, value in flat(resolved).items() if holds_hidden(value)}
    text = f"{_HIDDEN}{json.dumps(hashes)}\n" if hashes else ""
    if settings.sources:
        text += f"{_SOURCES}{json.dumps({key: asdict(source) for key, source in settings.sources.items()})}\n"
    text += OmegaConf.to_yaml(shown(resolved))
    atomic_write_text(path, f"{RUN_HEADER}{_DIGEST}{_digest(text)}\n{text}")


def changes(path: Path, settings: Settings) -> Changes:
    """What differs between the file and the settings of now. A file that is not as it was written is named in a
    warning. ValueError where it cannot be read, or is no run's."""
    resolved = _masked(settings.resolved)
    here = flat(_as_read(OmegaConf.to_yaml(shown(resolved))))
    there, hashes, sources = _read(path, here)
    for key, value in flat(resolved).items():
        if key in there and (key in hashes or holds_hidden(value)):
            there[key] = _compared(there[key], hashes.get(key), value)
    return _changes(_Pair(there, here, sources, settings))


@dataclass(frozen=True)
class _Pair:
    """Settings of a run and of now, flat, and the run's sources; None where it keeps none."""

    there: Mapping[str, Any]
    here: Mapping[str, Any]
    sources: Mapping[str, Source] | None
    settings: Settings

    def changed_keys(self) -> Iterator[str]:
        absent = object()
        for key in {**self.there, **self.here}:
            if key not in OF_ONE_START and self.there.get(key, absent) != self.here.get(key, absent):
                yield key

    def values(self, key: str) -> tuple[str, str]:
        """Then and now, as they are shown."""
        both = [
            json.dumps(side[key], ensure_ascii=False) if key in side else "(absent)" for side in (self.there, self.here)
        ]
        return both[0], both[1]

    def digests(self, key: str) -> tuple[str, str] | None:
        """Of what a key names, then and now; None where one of them is not known."""
        kept, now = (self.sources or {}).get(key), self.settings.sources.get(key)
        return None if kept is None or now is None else (kept.digest, now.digest)

    def names_the_same(self, key: str) -> bool:
        """Whether a key, or all that are looked up in the folder that it names, names what it did, by its digest, or,
        where the run keeps none, by its place."""
        if key in SET_KEYS and besides_places(self.there.get(key)) != besides_places(self.here.get(key)):
            return False
        if key in _FOLDERS:
            found = [self.digests(name) for name in self.settings.sources if name.startswith(_FOLDERS[key])]
            return bool(found) and all(pair is not None and pair[0] == pair[1] for pair in found)
        if (pair := self.digests(key)) is not None:
            return pair[0] == pair[1]
        now = self.settings.sources.get(key)
        kept = self.there.get(key)
        return now is not None and isinstance(kept, str) and find(kept).resolve() == find(now.path).resolve()

    def other_contents(self) -> tuple[list[str], dict[str, tuple[str, str]]]:
        """Keys whose code is another one, a reward's apart; and of other keys with other contents both digests."""
        found = {key: pair for key in self.settings.sources if (pair := self.digests(key)) and pair[0] != pair[1]}
        code = [key for key in found if key in CODE_KEYS]
        return code, {key: pair for key, pair in found.items() if key not in (*CODE_KEYS, REWARD_KEY)}

    def other_code(self, key: str) -> str:
        """For people: the file of a key holds other code than at the last start."""
        name = self.settings.names.get(key, key)
        return f"{name}: {self.settings.sources[key].path} has been edited since the run was last started with it"


def _changes(pair: _Pair) -> Changes:
    names, command = pair.settings.names, pair.settings.command
    refused: dict[str, str] = {}
    taken: list[str] = []
    for key in pair.changed_keys():
        name, (then, now) = names.get(key, key), pair.values(key)
        effect = effect_between(key, command, pair.there.get(key), pair.here.get(key))
        if effect != "result":
            taken.append(f"{name} {then} -> {now} ({note(effect, pair.here)})")
        elif not pair.names_the_same(key):
            refused[name] = f"{then} -> {now}"
        elif pair.sources is not None:
            taken.append(f"{name} {then} -> {now} (it holds the same)")
    code, other = pair.other_contents()
    taken += [pair.other_code(key) for key in code if names.get(key, key) not in refused]
    for key, (then, now) in other.items():
        place, name = (pair.sources or {})[key].path, names.get(key, key)
        refused.setdefault(name, f"{place} held {then[:12]} -> {pair.settings.sources[key].path} holds {now[:12]}")
    width = max(map(len, refused), default=0)
    return Changes(
        tuple(f"  {name:<{width}}  {change}" for name, change in refused.items()),
        tuple(taken),
        bool(other),
        pair.sources is not None or not pair.settings.sources,
    )


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


def _read(path: Path, here: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, Source] | None]:
    """The settings in the file, flat, the hashes of the values that it hides, and what its keys name."""
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
        hashes, sources = _comment(text, _HIDDEN), _comment(text, _SOURCES)
        named = None if sources is None else {key: Source(**source) for key, source in sources.items()}
        return flat_run(text, here), hashes or {}, named
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise _damaged(path, error) from error


def _comment(text: str, title: str) -> dict[str, Any] | None:
    """The JSON object behind a title among the first lines; None where it is not there."""
    lines = text.splitlines()[1 : 1 + _COMMENTS]
    found = next((line for line in lines if line.startswith(title)), None)
    return None if found is None else dict(json.loads(found.removeprefix(title)))


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
