"""What is said of a body that is no request: its place as the user wrote it, in plain words."""

import base64
import io

import pytest
from PIL import Image
from pydantic import ValidationError

from serve.invalid import what_is_wrong
from serve.protocol import ChatAsked, TextAsked


def wrong(kind, body):
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    errors = [error | {"loc": ("body", *error["loc"])} for error in refused.value.errors()]
    return what_is_wrong(errors, body)[0]


def said(content):
    return {"messages": [{"role": "user", "content": content}]}


def picture(**more):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url, **more}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": [-1]}, "prompt.0: must be greater than or equal to 0"),
        ({"prompt": [[1], [-2]]}, "prompt.1.0: must be greater than or equal to 0"),
        (
            {"prompt": 5},
            "prompt: must be a text, token ids, or a list of either",
        ),
        ({"prompt": "1", "stop": 5}, "stop: must be a text, or a list of texts"),
        ({"prompt": "1", "stop": ["1", ""]}, "stop.1: must have at least 1 item"),
        ({"prompt": "1", "n": "many"}, "n: must be a whole number"),
        ({"prompt": "1", "foo-bar": 1}, "'foo-bar': unknown field"),
    ],
)
def test_a_completion(body, message):
    assert wrong(TextAsked, body) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "messages.0.content: must be a text, or a list of parts"),
        (["1"], "messages.0.content.0: must be an object"),
        ([{"text": "1"}], "messages.0.content.0: type is missing"),
        ([{"type": "text", "text": 4}], "messages.0.content.0.text: must be a text"),
        ([{"type": "image_url"}], "messages.0.content.0.image_url: Field required"),
        ([{"type": "image_url", "image_url": "data:"}], "messages.0.content.0.image_url: must be an object"),
        ([picture(detail="best")], "messages.0.content.0.image_url.detail: must be 'auto', 'low' or 'high'"),
    ],
)
def test_a_chat(content, message):
    assert wrong(ChatAsked, said(content)) == message


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_the_detail_that_openais_clients_send_is_taken(detail):
    assert len(ChatAsked.model_validate(said([picture(detail=detail)])).pictures) == 1
