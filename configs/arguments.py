"""Command-line arguments, and YAML scalars, as the schema wants them: a value of a text key stays as it was typed.

YAML 1.1 reads 007 as 7, on as true and 12:30:00 as 45000, and refuses `{{problem}} =` or @file. None of that
is meant where a key holds text.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.spellings import RENAMED, SWITCHES
from configs.tree import put

_TEXT = (str, str | None)
_TEXT_TAG, _NULL_TAG, _MERGE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_TOP_LEVEL_TEXT = ("config", "model", "model_base")
"""Keys of text that stand outside the sections: the command's own, and dLLM-RL's."""


def argument_tree(arguments: Sequence[str], fields: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """`a.b=c` arguments as nested dicts, later ones winning. ValueError where the value of a key that is not text is no
    YAML."""
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, _, typed = argument.partition("=")
        value = _text(typed) if _is_text(key, typed, fields) else _value(key, typed)
        try:
            put(tree, key, value)
        except (TypeError, AttributeError):
            raise ValueError(f"{argument}: a value stands where {key.rpartition('.')[0]!r} is a section.") from None
    return tree


def as_typed(source: str, fields: Mapping[str, dataclasses.Field]) -> str | None:
    """`source` with quotes around the unquoted keys, and values of text keys, that YAML would take for something else
    (on, 5); None where there are none."""
    node = yaml.compose(source, Loader=yaml.SafeLoader)
    changed = list(_quoted(node, "", fields))
    return str(yaml.serialize(node, Dumper=yaml.SafeDumper)) if changed else None


def _quoted(node: yaml.Node | None, prefix: str, fields: Mapping[str, dataclasses.Field]) -> Iterator[str]:
    """Makes such scalars below a node text, in place, and yields them. What a merge (`<<`) brings in is below its own
    section too."""
    if not isinstance(node, yaml.MappingNode):
        return
    for i, (name, value) in enumerate(node.value):
        if name.tag == _MERGE_TAG:
            for each in _merged(value):
                yield from _quoted(each, prefix, fields)
            continue
        if _is_taken(name):
            yield _quote(name)
        key = f"{prefix}{name.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _quoted(value, f"{key}.", fields)
        elif isinstance(value, yaml.SequenceNode):
            yield from map(_quote, filter(_is_taken, value.value if _holds_texts(key, fields) else ()))
        elif isinstance(value, yaml.ScalarNode) and _is_taken(value) and _is_text(key, value.value, fields):
            node.value[i] = (name, yaml.ScalarNode(_TEXT_TAG, value.value, style="'"))  # the old one may have an alias
            yield value.value


def _quote(node: yaml.ScalarNode) -> str:
    """Makes a scalar text, and returns it."""
    node.tag, node.style = _TEXT_TAG, "'"
    return str(node.value)


def _merged(value: yaml.Node) -> list[yaml.Node]:
    """The mappings that a merge (`<<`) names: one, or a list of them."""
    return list(value.value) if isinstance(value, yaml.SequenceNode) else [value]


def _is_taken(node: yaml.Node) -> bool:
    """Whether YAML, or OmegaConf's (which reads 1e3 as a number), takes a scalar for something else than text or
    null."""
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return False
    return node.tag not in (_TEXT_TAG, _NULL_TAG) or node.value[:1] in tuple("+-.0123456789")


def _holds_texts(key: str, fields: Mapping[str, dataclasses.Field]) -> bool:
    """Whether a list under this key holds texts."""
    item = fields.get(RENAMED.get(key, key))
    return item is not None and (item.metadata["each"] is str or item.type in (list[str], list[str] | None))


def free_mappings(fields: Mapping[str, dataclasses.Field]) -> frozenset[str]:
    """Keys that hold a mapping of any names."""
    return frozenset(name for name, item in fields.items() if str(item.type).startswith("dict"))


def require_sections(
    tree: Mapping[str, Any], where: str, fields: Mapping[str, dataclasses.Field], prefix: str = ""
) -> None:
    """ValueError where a key of a file has dots (`experiment.project: x`), unless it is of a free mapping."""
    for name, value in tree.items():
        if "." in name:
            *above, last = name.split(".")
            nested = "".join(f"{part}: {{" for part in above) + f"{last}: ...{'}' * len(above)}"
            raise ValueError(f"{prefix + name!r} in {where}: sections of a file are mappings: write {nested}.")
        if isinstance(value, dict) and f"{prefix}{name}" not in free_mappings(fields):
            require_sections(value, where, fields, f"{prefix}{name}.")


def _is_text(key: str, typed: str, fields: Mapping[str, dataclasses.Field]) -> bool:
    if key in _TOP_LEVEL_TEXT:
        return True
    if typed in ("null", "~", "") or key.rpartition(".")[2] in SWITCHES:
        return False
    name = RENAMED.get(key, key)
    item = fields.get(name) or fields.get(name.rpartition(".")[0])
    if item is None:
        return False
    if name not in fields:
        return item.type == dict[str, str]
    return item.type in _TEXT or (item.metadata["each"] is str and not typed.startswith("["))


def _text(typed: str) -> str:
    """The text as it was typed; of a text in quotes, what they hold. A reference (`${training.seed}`) stays one."""
    if len(typed) >= 2 and typed[0] == typed[-1] and typed[0] in "'\"":
        try:
            unquoted = yaml.safe_load(typed)
        except yaml.YAMLError:
            unquoted = None
        typed = unquoted if isinstance(unquoted, str) else typed
    return typed if _is_readable(typed) else typed.replace("${", "\\${")


def _is_readable(text: str) -> bool:
    try:
        OmegaConf.create({"text": text})
    except OmegaConfBaseException:
        return False
    return True


def _value(key: str, typed: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={typed}"]), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{key}={typed} is not a YAML value: {str(error).splitlines()[0]}.") from None
