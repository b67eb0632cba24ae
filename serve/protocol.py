"""OpenAI's requests as this server reads them, and its answers as they write them.

https://platform.openai.com/docs/api-reference/chat, .../completions. A field that would change the answer and is not
supported is an error, never ignored; so is an unknown one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from models.vision.images import PLACEHOLDER
from serve.pictures import MOST_PICTURES, picture_of
from serve.text import Token

LONGEST_STOP = 256
_NEUTRAL: Mapping[str, Sequence[Any]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
"""Fields that are not supported, and the values with which they mean nothing."""
_WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"),
    "prompt_cache_retention",
    "verbosity",
)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]
Id = Annotated[int, Field(ge=0, strict=True)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of requests have. step_map: the answer shows its token ids and the step that decided each."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: Text | None = None
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(None, ge=0.0, le=100.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    step_map: bool = False

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name, neutral in _NEUTRAL.items():
            value = body.get(name)
            if name in body and name not in cls.model_fields and value is not None and value not in neutral:
                raise ValueError(f"{name} is not supported here: leave it out")
        ignored = {*_NEUTRAL, *_WITHOUT_EFFECT} - set(cls.model_fields)
        return {name: value for name, value in body.items() if name not in ignored}

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_logprobs(self) -> bool:
        raise NotImplementedError


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class ImageUrl(BaseModel):
    """url: a data URL, kept as the file that it holds."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[bytes, BeforeValidator(lambda url: picture_of(url) if isinstance(url, str) else url)]
    detail: Literal["auto", "low", "high"] | None = None  # without effect: a picture is read as the model reads all


class PicturePart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | PicturePart, Field(discriminator="type")]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[Part], Tag("parts")],
        Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
    ]

    @model_validator(mode="after")
    def _pictures_of_users(self) -> "Message":
        if self.pictures and self.role != "user":
            raise ValueError(f"a picture in a message of the {self.role}: send it in one of the user")
        return self

    @property
    def parts(self) -> list[Part]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def pictures(self) -> list[bytes]:
        return [part.image_url.url for part in self.parts if isinstance(part, PicturePart)]

    @property
    def turn(self) -> tuple[str, str]:
        """Role and text, a placeholder where a picture is."""
        texts = [part.text if isinstance(part, TextPart) else f"{PLACEHOLDER}\n" for part in self.parts]
        return ("system" if self.role == "developer" else self.role), "".join(texts)


def _raw_parts(asked: Any) -> Iterator[dict[str, Any]]:
    """The parts of a request's messages before they are validated."""
    messages = asked.get("messages") if isinstance(asked, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        yield from (part for part in (content if isinstance(content, list) else ()) if isinstance(part, dict))


class ChatAsked(Asked):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _few_pictures(cls, asked: Any) -> Any:
        """Before any is read."""
        pictures = sum(part.get("type") == "image_url" for part in _raw_parts(asked))
        if pictures > MOST_PICTURES:
            raise ValueError(f"{pictures} pictures: at most {MOST_PICTURES} are taken in a request")
        return asked

    @model_validator(mode="after")
    def _no_placeholders(self) -> "ChatAsked":
        texts = [part.text for message in self.messages for part in message.parts if isinstance(part, TextPart)]
        if self.pictures and any(PLACEHOLDER in text for text in texts):
            raise ValueError(f"{PLACEHOLDER} in a text stands for a picture: leave it out")
        return self

    @property
    def pictures(self) -> list[bytes]:
        return [picture for message in self.messages for picture in message.pictures]

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)


class TextAsked(Asked):
    """POST /v1/completions. logprobs: 0 or 1, the chosen token's alone."""

    prompt: Text | list[Text] | list[Id] | list[list[Id]]
    logprobs: int | None = Field(None, ge=0, le=1)

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        return prompt if several else [prompt]


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    content = [
        {"token": t.text, "logprob": t.logprob, "bytes": list(t.text.encode()), "top_logprobs": []} for t in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """offset: characters of the answer before these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": None,
        "text_offset": offsets,
    }
