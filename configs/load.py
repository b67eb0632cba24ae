"""YAML file plus `a.b=c` words -> a checked `Config`. Strict: an unknown key, a wrong type or an impossible value
stops here."""

import copy
import dataclasses
import difflib
import functools
import math
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from configs.schema import RENAMED, RETIRED, Config

REPOSITORY = Path(__file__).resolve().parent.parent


def find(path: str | Path) -> Path:
    """A path as typed, or else the same path inside the repository (so that scripts run from any folder)."""
    given = Path(path).expanduser()
    if given.exists() or given.is_absolute():
        return given
    inside = REPOSITORY / given
    return inside if inside.exists() else given


def load_config(arguments: Sequence[str], usage: str = "python rl.py config=configs/NAME.yaml [a.b=c ...]") -> Config:
    """Merges defaults, the YAML named by `config=` and the other words, later ones winning. ValueError names key,
    value and fix.

    `--help` prints every key and exits.
    """
    if any(word in ("--help", "-h", "help") for word in arguments):
        print(help_text(usage))
        sys.exit(0)
    for word in arguments:
        if "=" not in word:
            raise ValueError(f"argument {word!r} is not of the form key=value. Usage: {usage}")
    given = dict(word.split("=", 1) for word in arguments)
    if not given.get("config"):
        shipped = ", ".join(sorted(p.name for p in (REPOSITORY / "configs").glob("*.yaml")))
        raise ValueError(f"no config=FILE.yaml given. Usage: {usage}. Shipped in configs/: {shipped}")
    file = find(given["config"])
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in (REPOSITORY / "configs").glob("*.yaml")], n=1)
        raise ValueError(
            f"config file {given['config']} does not exist." + (f" Did you mean configs/{near[0]}?" if near else "")
        )
    from_words = OmegaConf.from_dotlist([word for word in arguments])
    return merge(*_read(file), _as_tree(from_words, "the command line"))


def _read(file: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """The trees of a YAML file and of the files that its `base` names, the deepest base first."""
    try:
        from_file = OmegaConf.load(file)
    except Exception as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(from_file, DictConfig):
        raise ValueError(f"{file} holds no mapping of sections.")
    base = from_file.pop("base", None)
    if base is None:
        return [_as_tree(from_file, str(file))]
    path = file.parent / str(base)
    if not path.is_file() or path.resolve() in (file.resolve(), *above):
        why = "is above it in the chain of bases" if path.is_file() else "does not exist"
        raise ValueError(f"{file}: base: {base} {why}; give a file beside {file.name}.")
    return [*_read(path, (*above, file.resolve())), _as_tree(from_file, str(file))]


@functools.cache
def _defaults() -> DictConfig:
    return typing.cast(DictConfig, OmegaConf.structured(Config))


def merge(*trees: dict[str, Any]) -> Config:
    """Defaults overlaid with nested dicts, in order; every check of `load_config` applies."""
    merged = copy.deepcopy(_defaults())
    for tree in trees:
        try:
            merged.merge_with(tree)
        except OmegaConfBaseException as error:
            raise ValueError(_wrong_type(error, tree)) from error
        except TypeError as error:
            raise ValueError(
                f"config: a list stands where a section or a mapping is meant, or the reverse ({error})"
            ) from error
    try:
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_first_line(error)} (key {error.full_key!r})") from error
    _check_ranges(config)
    return config


def flat_fields(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of every leaf of the schema."""
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(item.type):
            yield from flat_fields(typing.cast(type, item.type), f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def resolved(config: Config) -> dict[str, Any]:
    """The config as plain nested dicts, for the run folder; without `config` and `dry_run`, which are not part of a
    run."""
    tree = dataclasses.asdict(config)
    return {k: v for k, v in tree.items() if k not in ("config", "dry_run")}


def help_text(usage: str) -> str:
    lines = [f"usage: {usage}", "", "Any key may be given on the command line as section.key=value.", ""]
    for name, item in flat_fields():
        factory: Any = item.default_factory
        default = factory() if item.default is dataclasses.MISSING else item.default
        lines.append(f"  {name:<44} {_kind(item):<18} {default!r:<26} {item.metadata['help']}{_range_text(item)}")
    lines += [
        "",
        "examples:",
        "  python rl.py config=configs/rl_tiny.yaml",
        "  python rl.py config=configs/rl_trado.yaml model.pretrained_model=/models/TraDo-4B rollout.max_token=1000",
        "  python eval.py config=configs/trado_eval.yaml model.pretrained_model=/models/TraDo-4B",
        "  python rl.py config=configs/rl_trado.yaml dry_run=true",
    ]
    return "\n".join(lines)


def _range_text(item: dataclasses.Field) -> str:
    if item.metadata["choices"]:
        return f" [{' | '.join(item.metadata['choices'])}]"
    return ""


def _as_tree(source: Any, where: str) -> dict[str, Any]:
    """A source as nested dicts with dLLM-RL's spellings translated, retired keys taken out, unknown keys refused."""
    tree = typing.cast(dict[str, Any], OmegaConf.to_container(source, resolve=False))
    training = tree.get("training")
    if isinstance(training, dict) and training.get("mixed_precision") is False:
        training["mixed_precision"] = "no"  # YAML reads an unquoted no as false
    if isinstance(tree.get("model"), str):
        tree["model"] = {"pretrained_model": tree["model"]}
    if "model_base" in tree:
        tree["model"] = dict(tree.get("model") or {}) | {"model_base": tree.pop("model_base")}
    _rename(tree, where)
    known = dict(flat_fields())
    free = {name for name, item in known.items() if str(item.type).startswith("dict")}
    for name in list(_leaves(tree)):
        if name in RETIRED:
            warnings.warn(f"{name} in {where} has no effect: {RETIRED[name]}", stacklevel=3)
            _remove(tree, name)
        elif name not in known and not any(name.startswith(f"{prefix}.") for prefix in free):
            if any(key.startswith(f"{name}.") for key in known):
                raise ValueError(f"{name!r} in {where} is a section: set keys in it, as in {name}.KEY=value.")
            raise ValueError(f"unknown key {name!r} in {where}.{_suggest(name, [*known])} --help lists every key.")
    return tree


def _rename(tree: dict[str, Any], where: str) -> None:
    """Moves dLLM-RL's keys to their names here. A process reward model there is a judge of mode process here."""
    names = set(_leaves(tree))
    for old in [name for name in RENAMED if name in names]:
        new, value = RENAMED[old], _get(tree, old)
        if new in names:
            raise ValueError(f"{old} and {new} are both in {where}: they mean the same, keep one.")
        names.add(new)
        _remove(tree, old)
        _set(tree, new, (value or None) if new == "judge.local" else value)
        if new == "judge.local" and value and "judge.mode" not in names:
            _set(tree, "judge.mode", "process")


def _suggest(name: str, known: Sequence[str]) -> str:
    """The key that is all but the same; or those that differ in their section only; or a near one."""
    last, by_last = name.rsplit(".", 1)[-1], {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    same = [key for key in known if key.rsplit(".", 1)[-1] == last]
    near = (
        difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        or difflib.get_close_matches(name, same, n=1, cutoff=0.75)
        or same
        or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        or [by_last[match] for match in difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)]
    )
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of what a tree sets; sections that it leaves empty are taken out."""
    sections = {name.rpartition(".")[0] for name in (*RETIRED, *RENAMED, *(name for name, _ in flat_fields()))}
    for key, value in list(tree.items()):
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value in (None, {}) and f"{prefix}{key}" in sections:
            tree.pop(key)
        else:
            yield f"{prefix}{key}"


def _get(tree: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for part in sections:
        tree[part] = tree.get(part) or {}
        tree = tree[part]
    tree[last] = value


def _remove(tree: dict[str, Any], name: str) -> None:
    *sections, last = name.split(".")
    parents = [tree]
    for part in sections:
        parents.append(parents[-1][part])
    del parents[-1][last]
    for parent, part in zip(reversed(parents[:-1]), reversed(sections), strict=True):
        if not parent[part]:
            del parent[part]


def _check_ranges(config: Config) -> None:
    tree = dataclasses.asdict(config)
    for name, item in flat_fields():
        value = _get(tree, name)
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None or (item.type is Any and item.default is not None):
                _check_entry(name, entry, item)
    for name in ("rollout", "evaluation"):
        decode = getattr(config, name)
        try:
            lists = decode.parallel_lists()
            for block_size in lists.get("block_size", [decode.block_size]):
                if block_size is not None:
                    decode.check_steps(block_size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _check_entry(name: str, entry: Any, item: dataclasses.Field) -> None:
    low, high, choices = item.metadata["low"], item.metadata["high"], item.metadata["choices"]
    if choices and entry not in choices:
        by_lower = {choice.lower(): choice for choice in choices}
        near = difflib.get_close_matches(str(entry).lower(), by_lower, n=1)
        hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
        raise ValueError(f"{name} is {entry!r}; choose from {', '.join(choices)}.{hint}")
    if low is None:
        return
    whole = item.type is Any
    if isinstance(entry, bool) or not isinstance(entry, int if whole else (int, float)) or not math.isfinite(entry):
        raise ValueError(f"{name} is {entry!r}; it must be a {'whole' if whole else 'finite'} number.")
    if entry < low or (high is not None and entry > high):
        bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {entry!r}; it must be {bounds}.")


def _wrong_type(error: OmegaConfBaseException, tree: dict[str, Any]) -> str:
    item = dict(flat_fields()).get(str(error.full_key))
    if item is None or not isinstance(error, ValidationError):
        return f"config: {_first_line(error)} (key {error.full_key!r})"
    return f"{error.full_key} is {_get(tree, str(error.full_key))!r}; it must be of type {_kind(item)}."


def _kind(item: dataclasses.Field) -> str:
    return str(item.type).replace("<class '", "").replace("'>", "").replace("typing.Any", "value or list")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
