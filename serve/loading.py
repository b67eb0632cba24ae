"""From settings to a sampler: what can be known to fail at once, then the weights."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from configs import find, naming
from data.control import encode
from data.templates import Format, Writer, chat_formats
from models import DiffusionLM, Prompt, load_model
from models.folder import weight_files
from models.spec import CheckpointSpec
from models.tokenizer import read_tokenizer
from models.vision.seeing import DEFAULT_RESOLUTION
from sample import Sampler, SamplingConfig, sampler_of
from sample.config import cache_of, check_canvases, check_edits, check_remasks, decoding_of, moving_ids
from serve.settings import ModelSettings, ServeSettings

USUAL_SEQUENCE_TOKENS, USUAL_NEW_TOKENS = 4096, 1024
S = TypeVar("S", bound=ModelSettings)


def check(settings: ModelSettings) -> CheckpointSpec:
    """The checkpoint's spec. ValueError for whatever can be known to fail before its weights are read."""
    with naming("model"):
        spec = CheckpointSpec.read(find(settings.model), settings.model_base)
        weight_files((spec.base or spec).folder)
        if read_tokenizer(spec.folder, spec.family) is None:
            raise ValueError(f"{spec.folder} has no tokenizer (tokenizer.json or vocab files): texts cannot be read.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here. Set device=cpu or auto.")
    cache_of(settings.cache, spec.family)  # type: ignore[arg-type]
    check_edits(settings.edit_threshold, spec.family)
    check_remasks(settings.remask_threshold, moving_ids(settings.edit_threshold, spec))
    check_canvases(config_of(sized(settings, spec)), spec)
    return spec


def config_of(settings: ModelSettings, **more: Any) -> SamplingConfig:
    """Its fields that the settings have, and more. ValueError as of `SamplingConfig`."""
    names = {item.name for item in fields(SamplingConfig)}
    return SamplingConfig(**{name: value for name, value in vars(settings).items() if name in names} | more)


def sized(settings: S, spec: CheckpointSpec) -> S:
    """The settings with lengths that the model has room for, and choices of decoding (`decoding_of`), in place of null.
    ValueError where given lengths have no room."""
    sequence = settings.max_sequence_tokens or min(USUAL_SEQUENCE_TOKENS, spec.positions)
    if sequence > spec.positions:
        raise ValueError(f"max_sequence_tokens={sequence}: the model has {spec.positions} positions.")
    new = settings.max_new_tokens or min(USUAL_NEW_TOKENS, sequence // 2)
    if new >= sequence:
        raise ValueError(
            f"max_new_tokens={new} leaves no room for a prompt in sequences of {sequence} tokens: lower it, or raise "
            f"max_sequence_tokens (the model has {spec.positions} positions)."
        )
    return replace(settings, max_sequence_tokens=sequence, max_new_tokens=new, **decoding_of(vars(settings), spec))


def load_sampler(settings: ModelSettings, spec: CheckpointSpec, **more: Any) -> Sampler:
    """The model on its device, and a sampler over it. more: fields of its config besides the settings'."""
    gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    names = {"auto": "bfloat16" if gpu else "float32", "bf16": "bfloat16", "fp32": "float32"}
    if settings.threads:
        torch.set_num_threads(settings.threads)
    image_tokenizer = settings.vq_model_path if isinstance(settings, ServeSettings) else None
    model = load_model(spec, names[settings.dtype], "cuda" if gpu else "cpu", image_tokenizer=image_tokenizer)
    return sampler_of(model, config_of(settings, **more))


class Reader:
    """Chats and texts -> prompts. resolution: of pictures that become codes (mmada), a side in pixels."""

    def __init__(self, model: DiffusionLM, settings: ModelSettings, resolution: int = DEFAULT_RESOLUTION):
        self.model, self.family, self.resolution = model, model.spec.family, resolution
        self.tokenizer: Any = model.tokenizer
        how = Format(self.family.name, "general", settings.template, settings.start_with_think)
        self.writer = Writer(how, self.tokenizer)

    def chat(self, turns: list[tuple[str, str]], pictures: Sequence[bytes] = ()) -> Prompt:
        """A conversation that the answer continues, with a placeholder for each picture. Control tokens in its turns
        are text. ValueError: no chat format, a chat template that fails, pictures that cannot be used or that the
        model does not take."""
        if self.writer.chat is None and self.family.name.lower() not in chat_formats():
            raise ValueError(f"{self.family.name} has no chat format: ask for completions, or set template=chat.")
        text = self.writer.conversation(turns, pictures)
        if not pictures:
            return self.text(text)
        return self.model.prompt(text, pictures, resolution=self.resolution, encode=self._encode)

    def text(self, text: str) -> Prompt:
        """A text as it stands: control tokens in it count."""
        return Prompt(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)
