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
from configs.tree import get, put

_TEXT = (str, str | None)
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


def restore_texts(tree: dict[str, Any], source: str, fields: Mapping[str, dataclasses.Field]) -> None:
    """Puts back, into a tree that YAML made of `source`, the unquoted scalars of text keys that YAML took for something
    else."""
    for key, node in _scalars(yaml.compose(source, Loader=yaml.SafeLoader)):
        if not isinstance(get(tree, key), str | None) and _is_text(key, node.value, fields):
            put(tree, key, node.value)


def _scalars(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    for name, value in node.value if isinstance(node, yaml.MappingNode) else []:
        key = f"{prefix}{name.value}"
        if isinstance(value, yaml.ScalarNode):
            yield key, value
        else:
            yield from _scalars(value, f"{key}.")


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
