"""Bodies that are no requests: where, as the user wrote it, and what is wrong, in a user's words."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from serve.protocol import ChatAsked, TextAsked

_PLAIN = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "bytes_type": "must be a text",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a text",
}
_SEVERAL = {
    "content": "must be a text, or a list of parts",
    "prompt": "must be a text, token ids, or a list of either",
    "stop": "must be a text, or a list of texts",
}
"""What fields may be that take more than one kind of value."""


def what_is_wrong(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str | None]:
    """errors: pydantic's, of the body. A message, and the field that it begins with, such as messages.0.content."""
    error = _telling(errors)
    if error["type"] == "json_invalid":
        return f"the body is no JSON: {error['ctx']['error']}", None
    place = _place(error, body)
    if error["type"] in ("model_attributes_type", "missing") and not place:
        return "the body must be a JSON object, sent as Content-Type: application/json", None
    where, message = ".".join(place), _message(error, place)
    return (f"{where}: {message}", where) if where else (message, None)


def _telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Where a field may be of several kinds, each has an error: rather one about the value than about its kind."""
    field = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return next((error for error in field if error["type"] not in _PLAIN), field[0])


def _place(error: Mapping[str, Any], body: Any) -> list[str]:
    """The names and places on the way to the value, without what pydantic's kinds of values are called."""
    place: list[str] = []
    at, last = body, len(error["loc"]) - 1
    for i, part in enumerate(error["loc"][1:], 1):
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and isinstance(part, int) and part < len(at)):
            at = at[part]
        elif i != last or error["type"] != "missing":
            continue
        readable = isinstance(part, int) or part.isidentifier()
        place.append(str(part) if readable else repr(part)[:60])  # escaped: it need not be a name
    return place[:1] if error["type"] in _PLAIN and place and place[0] in _SEVERAL else place


def _message(error: Mapping[str, Any], place: Sequence[str]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), [*ChatAsked.model_fields, *TextAsked.model_fields], n=1)
        return "unknown field" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "union_tag_invalid":
        return f"type must be one of {error['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return "type is missing"
    if kind in _PLAIN:
        return _SEVERAL.get(place[-1], _PLAIN[kind]) if place else _PLAIN[kind]
    message = str(error["msg"]).removeprefix("Value error, ").partition(" after validation")[0]
    return re.sub("^(Input|List|String|Value) should", "must", message)
