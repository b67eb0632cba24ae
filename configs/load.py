"""YAML file plus `a.b=c` arguments -> a checked `Config`. Strict: an unknown key, a wrong type or an impossible value
stops here."""

import contextlib
import copy
import dataclasses
import difflib
import functools
import logging
import re
import sys
import typing
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from configs.arguments import argument_tree, as_typed, free_mappings, require_sections
from configs.commands import TITLES, Command, readers, reads, unread
from configs.curve import curve_arguments, warn_of_idle_threshold, with_curve
from configs.fields import check_entry, flat_fields, kind_of, no_list, require_built_in
from configs.help import help_text, terminal_width
from configs.hidden import MASK, actual, from_environment, strings, without
from configs.hints import keys_for, note_for
from configs.schema import METHOD_NAMES, Config, Section
from configs.spellings import RENAMED, RETIRED, drop_what_lost, name_false, rename
from configs.tree import flat, get, pop, put

logger = logging.getLogger(__name__)

# What the config.yaml of a run begins with. Runs of earlier versions have it: it never changes.
RUN_HEADER = "# The resolved configuration of the run in this folder; the run is continued only with the same one.\n"
REPOSITORY = Path(__file__).resolve().parent.parent


def find(path: str | Path) -> Path:
    """A path as typed, or else the same path inside the repository (so that scripts run from any folder)."""
    given = Path(path).expanduser()
    if given.exists() or given.is_absolute():
        return given
    inside = REPOSITORY / given
    return inside if inside.exists() else given


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """A ValueError of the block names the config key `key` first, unless it names one itself."""
    try:
        yield
    except ValueError as error:
        if re.match(r"[a-z_]+(\.[a-z_]+)+( is|=|:)", str(error)):
            raise
        raise ValueError(f"{key}: {error}") from error


def load_config(
    arguments: Sequence[str],
    usage: str = "python rl.py config=configs/NAME.yaml [a.b=c ...]",
    command: Command | None = None,
) -> Config:
    """Merges defaults, the YAML named by `config=` and the other arguments, later ones winning. ValueError names key,
    value and fix: also for an argument that `command` does not read; such keys of a YAML are named in a warning.

    `--help` prints the command's keys and exits.
    """
    if any(argument in ("--help", "-h", "help") for argument in arguments):
        print(help_text(usage, command, terminal_width()))
        sys.exit(0)
    arguments, curve = curve_arguments(arguments, command)
    for argument in arguments:
        if "=" not in argument or argument.startswith("-"):
            raise ValueError(f"argument {argument!r} is not of the form key=value.{_undashed(argument)} Usage: {usage}")
    given = dict(argument.split("=", 1) for argument in arguments)
    if not given.get("config"):
        shipped = ", ".join(sorted(p.name for p in (REPOSITORY / "configs").glob("*.yaml")))
        raise ValueError(f"no config=FILE.yaml given. Usage: {usage}. Shipped in configs/: {shipped}")
    file = find(given["config"])
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in (REPOSITORY / "configs").glob("*.yaml")], n=1)
        raise ValueError(
            f"config file {given['config']} does not exist." + (f" Did you mean configs/{near[0]}?" if near else "")
        )
    sources = [*_read(file), _read_tree(argument_tree(arguments, dict(flat_fields())), "the command line")]
    if command is not None:
        _check_command(command, sources, str(file))
    typed: dict[str, str] = {}
    for source in sources:
        set_here = flat(source.tree)
        typed = {key: name for key, name in typed.items() if key not in set_here} | source.typed
    config = _with_texts(_overlaid(sources, typed))
    set_last = sources[-1].set_keys()
    if curve:
        with naming("rollout"):
            rollout = with_curve(config.rollout, typed="rollout.threshold" in set_last)
        config = dataclasses.replace(config, rollout=rollout)
    config = _checked(_as_dllm_rl(config, sources, command), typed)
    for section in (config.rollout, config.evaluation):
        key = f"{section.section}.threshold"
        if command is None or reads(command, key):
            warn_of_idle_threshold(section, typed=key in set_last)
    if command in METHOD_NAMES:
        _check_method(command, config)
    return config


def _check_method(command: Command, config: Config) -> None:
    """ValueError where training.method is no method of the command's."""
    key, method = config.typed.get("training.method", "training.method"), config.training.method
    names, other = METHOD_NAMES[command], "train/sft.py" if command == "rl" else "rl.py"
    if method not in names and any(method in of_one for of_one in METHOD_NAMES.values()):
        raise ValueError(f"{key}={method} is for {other}; {command.upper()} knows {', '.join(names)}.")
    require_built_in(key, method, names)


def _as_dllm_rl(config: Config, sources: Sequence["_Source"], command: Command | None) -> Config:
    """Of RL on math by a YAML of dLLM-RL, which is known by its names of keys: answers cut at the limit are wrong, as
    there, where no source says otherwise."""
    *of_yaml, _ = sources
    theirs = any(source.is_dllm_rl for source in of_yaml)
    set_keys = {key for source in sources for key in source.set_keys()}
    trains = command in (None, "rl") and "dataset.train_dataset" in set_keys and config.dataset.data_type == "math"
    if not theirs or not trains or "training.truncated" in set_keys:
        return config
    logger.warning(
        "a YAML of dLLM-RL: math answers without a stop count as wrong, as there (training.truncated=wrong; set it to "
        "keep or drop)"
    )
    return dataclasses.replace(config, training=dataclasses.replace(config.training, truncated="wrong"))


def _check_command(command: Command, sources: Sequence["_Source"], file: str) -> None:
    *of_yaml, of_arguments = sources
    for key in of_arguments.set_keys():
        if not reads(command, key):
            raise ValueError(
                f"{of_arguments.typed.get(key, key)}: {TITLES[command]} does not read this key; {readers(key)}."
            )
    chosen = [source for source in of_yaml if not source.of_a_run]  # a run writes every key that there is
    found = dict.fromkeys(name for source in chosen for name in unread(command, source.set_keys(), source.typed))
    if found:
        warnings.warn(f"{file} sets keys that {TITLES[command]} does not read: {', '.join(found)}", stacklevel=3)


def _with_texts(config: Config) -> Config:
    """The config with the texts that are named by their files (`@file`) read. ValueError where there is no such
    file."""
    dataset = config.dataset
    template = _text_of("dataset.template", dataset.template)
    system = dataset.system
    if system is not None and system.startswith("@"):
        system = _text_of("dataset.system", system).removesuffix("\n")  # an editor's, which the text does not mean
    return dataclasses.replace(config, dataset=dataclasses.replace(dataset, template=template, system=system))


def _text_of(key: str, given: str) -> str:
    if not given.startswith("@"):
        return given
    path = find(given[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{key}={given}: {path} cannot be read ({why}).") from error


@dataclasses.dataclass(frozen=True)
class _Source:
    """A YAML file or the command line under the schema's names. typed: key -> as it is spelled there, where that is
    another name. is_dllm_rl: it has a key of dLLM-RL, and is not what a run wrote. of_a_run: a run wrote it."""

    tree: dict[str, Any]
    typed: dict[str, str]
    is_dllm_rl: bool = False
    of_a_run: bool = False

    def set_keys(self) -> list[str]:
        """Keys of the schema that the source sets, those of free mappings as one."""
        known = dict(flat_fields())
        return list(dict.fromkeys(key if key in known else key.rpartition(".")[0] for key in flat(self.tree)))


def _read(file: Path, above: tuple[Path, ...] = ()) -> list[_Source]:
    """A YAML file and the files that its `base` names, the deepest base first."""
    try:
        text = file.read_text(encoding="utf-8")
        from_file = OmegaConf.create(text)
        if not isinstance(from_file, DictConfig):
            raise ValueError(f"{file} holds no mapping of sections.")
        if (typed := as_typed(text, dict(flat_fields()))) is not None:
            from_file = OmegaConf.create(typed)
        tree = typing.cast(dict[str, Any], OmegaConf.to_container(from_file, resolve=False))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    except AssertionError as error:  # OmegaConf's, of a file that is one number
        raise ValueError(f"{file} holds no mapping of sections.") from error
    require_sections(tree, str(file), dict(flat_fields()))
    base = tree.pop("base", None)
    if base is None:
        return [_read_tree(tree, str(file), of_a_run=text.startswith(RUN_HEADER))]
    path = file.parent / str(base)
    if not path.is_file() or path.resolve() in (file.resolve(), *above):
        why = "is above it in the chain of bases" if path.is_file() else "does not exist"
        raise ValueError(f"{file}: base: {base} {why}; give a file beside {file.name}.")
    return [*_read(path, (*above, file.resolve())), _read_tree(tree, str(file))]


@functools.cache
def _defaults() -> DictConfig:
    tree = typing.cast(DictConfig, OmegaConf.structured(Config))
    _let_merge(tree)
    return tree


def _let_merge(tree: DictConfig) -> None:
    """OmegaConf takes a frozen class for a tree that may not be merged into."""
    OmegaConf.set_readonly(tree, False)
    for value in tree.values():
        if isinstance(value, DictConfig):
            _let_merge(value)


def merge(*trees: dict[str, Any]) -> Config:
    """Defaults overlaid with nested dicts, in order; every check of `load_config` applies."""
    return _checked(_overlaid([_Source(tree, {}) for tree in trees], {}), {})


def _overlaid(sources: Sequence[_Source], typed: Mapping[str, str]) -> Config:
    merged = copy.deepcopy(_defaults())
    for source in sources:
        try:
            merged.merge_with(name_false(source.tree))
        except OmegaConfBaseException as error:
            raise ValueError(_wrong_type(error, source)) from error
        except TypeError as error:
            raise ValueError(
                f"config: a list stands where a section or a mapping is meant, or the reverse ({error})"
            ) from error
    try:
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(_not_resolved(error, merged, typed)) from None  # its cause may show a hidden value
    if not any("${oc.env:" in text for source in sources for text in strings(source.tree)):
        return config
    raw = flat(typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False)))
    return dataclasses.replace(config, hidden=from_environment(raw, functools.partial(get, config)))


def _checked(config: Config, typed: Mapping[str, str]) -> Config:
    """The config with the spellings that were typed known to its sections, all values in their ranges."""
    sections: dict[str, Any] = {
        item.name: dataclasses.replace(section, typed=_of_section(typed, item.name))
        for item in dataclasses.fields(config)
        if isinstance(section := getattr(config, item.name), Section)
    }
    config = dataclasses.replace(config, typed=dict(typed), **sections)
    try:
        _check_ranges(config, typed)
    except ValueError as error:
        raise ValueError(without(str(error), config.hidden)) from None
    return config


def _of_section(typed: Mapping[str, str], name: str) -> dict[str, str]:
    return {key.removeprefix(f"{name}."): old for key, old in typed.items() if key.startswith(f"{name}.")}


def resolved(config: Config) -> dict[str, Any]:
    """The config as plain nested dicts, for the run folder; without `config` and `dry_run`, which are not part of a
    run. Values of environment variables are `Hidden`, unless they were replaced since."""
    tree: dict[str, Any] = {}
    for name, _ in flat_fields():
        if name not in ("config", "dry_run"):
            put(tree, name, copy.deepcopy(get(config, name)))
    for name, value in config.hidden.items():
        if name not in ("config", "dry_run") and get(tree, name) == actual(value):
            put(tree, name, value)
    return tree


def flat_run(text: str, of_today: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of the config.yaml of a run, under today's names. of_today: a config of today, flat: a key of
    it that was not there yet has its default in the run. Lists are values."""
    tree = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text), resolve=False))
    drop_what_lost(tree)
    rename(tree, "config.yaml")
    run, defaults = flat(tree), flat(resolved(Config()))
    new = {key for key, value in of_today.items() if key not in run and key in defaults and defaults[key] == value}
    return run | {key: defaults[key] for key in new}


def _read_tree(tree: dict[str, Any], where: str, of_a_run: bool = False) -> _Source:
    """A source under the schema's names; retired keys taken out, unknown keys refused. of_a_run: it is the config.yaml
    that a run wrote."""
    if isinstance(tree.get("model"), str):
        tree["model"] = {"pretrained_model": tree["model"]}
    if "model_base" in tree:
        tree["model"] = dict(tree.get("model") or {}) | {"model_base": tree.pop("model_base")}
    if of_a_run:
        drop_what_lost(tree)
    known = dict(flat_fields())
    _drop_empty(tree, {name.rpartition(".")[0] for name in (*RETIRED, *RENAMED, *known)})
    typed = rename(tree, where)
    retired = [name for name in flat(tree) if name in RETIRED]
    free = free_mappings(known)
    for name in list(flat(tree)):
        if name in RETIRED:
            warnings.warn(f"{name} in {where} has no effect: {RETIRED[name]}", stacklevel=3)
            pop(tree, name)
        elif name not in known and not any(name.startswith(f"{prefix}.") for prefix in free):
            if any(key.startswith(f"{name}.") for key in known):
                raise ValueError(f"{name!r} in {where} is a section: set keys in it, as in {name}.KEY=value.")
            raise ValueError(
                f"unknown key {name!r} in {where}.{_suggest(name, [*known, *RENAMED])} --help lists every key."
            )
    return _Source(tree, typed, bool(typed or retired) and not of_a_run, of_a_run)


def _undashed(argument: str) -> str:
    """What an argument in the style of other commands (--learning_rate) may mean."""
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if not argument.startswith("-") or not name:
        return ""
    known = [key for key, _ in flat_fields()]
    return f" Did you mean {name!r}, without dashes?" if name in known else _suggest(name, [*known, *RENAMED])


def _suggest(name: str, known: Sequence[str]) -> str:
    """What other projects call so; or the key that is all but the same; or those that differ in their section only; or
    a near one."""
    last, by_last = name.rsplit(".", 1)[-1], {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    same = [key for key in known if key.rsplit(".", 1)[-1] == last]
    if note := note_for(name):
        return f" {note}"
    near = (
        keys_for(name, known)
        or difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        or ("." in name and difflib.get_close_matches(name, same, n=1, cutoff=0.75))
        or same
        or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        or [by_last[match] for match in difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)]
    )
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _drop_empty(tree: dict[str, Any], sections: Collection[str], prefix: str = "") -> None:
    """Takes out the sections that a source leaves empty."""
    for key, value in list(tree.items()):
        if isinstance(value, dict):
            _drop_empty(value, sections, f"{prefix}{key}.")
        if value in (None, {}) and f"{prefix}{key}" in sections:
            tree.pop(key)


def _check_ranges(config: Config, typed: Mapping[str, str]) -> None:
    for name, item in flat_fields():
        value = get(config, name)
        if isinstance(value, str) and f":{MASK}@" in value:
            raise ValueError(
                f"{typed.get(name, name)}={value}: its password was left out when this was written. Give the key "
                "again, best with ${oc.env:NAME}, so that the password is in no file."
            )
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None or (item.metadata["each"] and item.default is not None):
                check_entry(typed.get(name, name), entry, item)
    for section in ("rollout", "evaluation"):
        decode = getattr(config, section)
        with naming(section):
            for block_size in decode.parallel_lists().get("block_size", [decode.block_size]):
                if block_size is not None:
                    decode.check_steps(block_size)


def _not_resolved(error: OmegaConfBaseException, merged: DictConfig, typed: Mapping[str, str]) -> str:
    key = str(error.full_key)
    item, name = dict(flat_fields()).get(key), typed.get(key, key)
    if item is None or not isinstance(error, ValidationError):
        return f"config: {_first_line(error)} (key {name!r})"
    raw = get(OmegaConf.to_container(merged, resolve=False), key)
    return f"{name} is {raw!r}; what that stands for must be of type {kind_of(item)}."


def _wrong_type(error: OmegaConfBaseException, source: _Source) -> str:
    key = str(error.full_key)
    item = dict(flat_fields()).get(key)
    if item is None or not isinstance(error, ValidationError):
        return f"config: {_first_line(error)} (key {error.full_key!r})"
    given = f"{source.typed.get(key, key)} is {get(source.tree, key)!r}"
    if isinstance(get(source.tree, key), list):
        return f"{given}; {no_list(key, item)}."
    return f"{given}; it must be of type {kind_of(item)}."


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
