"""Keys of serve.py and of the chat: flat, typed as key=value."""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.arguments import argument_tree
from configs.fields import check_entry, kind_of
from configs.schema import STRATEGY_NAMES, TARGET_NAMES, opt, output, speed

S = TypeVar("S", bound="ModelSettings")


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and how it decodes."""

    model: str = opt("", "checkpoint folder (original layout), a folder of adapters, or a hub name")
    model_base: str | None = opt(None, "the model's family where config.json does not name it: sdar, dream, llada, ...")
    device: str = opt("auto", "auto (a GPU if there is one), cpu or cuda", choices=("auto", "cpu", "cuda"))
    dtype: str = opt(
        "auto", "type of the weights; auto = bf16 on a GPU, fp32 on a CPU", choices=("auto", "bf16", "fp32")
    )
    threads: int = speed(0, "CPU threads of torch; 0 = as torch chooses", low=0)
    template: str = opt(
        "auto",
        "how a chat is written: auto = the family's format, chat = the chat template of the tokenizer",
        choices=("auto", "chat"),
    )
    start_with_think: bool = opt(False, "the answer to a chat begins with an open thought, where the family has one")
    max_sequence_tokens: int | None = opt(
        None, "of prompt and answer; memory is taken for so many a slot; null = 4096, or the model's positions", low=2
    )
    max_new_tokens: int | None = opt(
        None, "tokens of an answer at most; null = 1024, or half of the sequence where that is less", low=1
    )
    block_size: int | None = opt(None, "tokens of a block; null = the checkpoint's, under full attention 32", low=1)
    steps_per_block: int | None = opt(None, "denoising steps of a block; null = one token a step", low=1)
    strategy: str | None = opt(
        None,
        "which positions a step commits: a name, or path/to/file.py:name; null = low_confidence_dynamic, canvases "
        "(DiffusionGemma): decoding as generation_config.json has it",
        names=STRATEGY_NAMES,
    )
    target: str = opt(
        "confidence", "the score that ranks positions: a name, or path/to/file.py:name", names=TARGET_NAMES
    )
    threshold: float = opt(0.9, "low_confidence_dynamic commits positions above it", low=0.0, high=1.0)
    entropy_bound: float | None = opt(
        None, "of entropy_bounded, nats; null = 0.35, canvases without a strategy: the checkpoint's", low=0.0
    )
    edit_threshold: float | None = opt(
        None, "block families: a block's tokens are overwritten by others above this probability", low=0.0, high=1.0
    )
    remask_threshold: float | None = opt(
        None, "a block's tokens below this probability return to the mask", low=0.0, high=1.0
    )
    max_post_steps: int = opt(16, "of both: steps of a block without masks at most", low=0, high=32)
    remask_budget: int = opt(16, "tokens of a block that may return to the mask", low=0, high=32)
    cache: str = opt(
        "auto", "cache of keys and values (docs/sampling.md)", choices=("auto", "exact", "none", "prefix", "dual")
    )
    further_horizon: int | None = opt(None, "of cache prefix: tokens right of the block that it sees", low=0)
    temperature: float | None = opt(
        None,
        "where a request names none; 0 = greedy; null = 1, canvases without a strategy: the checkpoint's",
        low=0.0,
        high=100.0,
    )
    final_temperature: float | None = opt(
        None,
        "canvases (DiffusionGemma): what temperature falls to over a canvas's steps; null = it stays, without a "
        "strategy the checkpoint's",
        low=1e-6,
    )
    stable_steps: int = opt(
        1,
        "canvases: one may end early when its likeliest tokens have not changed in so many steps and their mean "
        "entropy is below settled_entropy",
        low=0,
    )
    settled_entropy: float = opt(0.005, "canvases: nats, see stable_steps; 0 = all steps are taken", low=0.0)
    top_p: float = opt(1.0, "where a request names none", low=0.0, high=1.0)
    top_k: int = opt(0, "where a request names none; 0 = all tokens", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class ServeSettings(ModelSettings):
    """Of the server."""

    host: str = output("127.0.0.1", "address to listen at; 0.0.0.0 = every one of this machine (set api_key then)")
    port: int = output(8000, "port; 0 = a free one, which is printed", low=0, high=65535)
    name: str | None = output(None, "what /v1/models calls the model; null = its folder's name")
    api_key: str | None = output(
        None, "requests to /v1 must carry it as a bearer token; best as ${oc.env:NAME}; null = none is asked for"
    )
    max_slots: int = speed(32, "answers that are decoded at a time", low=1)
    max_queue: int = output(256, "answers that may wait for a slot; more are refused with 503", low=0)
    max_body_mib: float = output(1.0, "size of a request's body; larger ones are refused with 413", low=0.001)
    timeout_seconds: float = output(600.0, "from a request's arrival to its last token; then 504", low=0.01)
    drain_seconds: float = output(30.0, "after SIGTERM or Ctrl-C: time for open requests to end", low=0.0)
    graphs: str = speed("auto", "CUDA graphs of the sampler", choices=("auto", "off"))
    vq_model_path: str | None = opt(
        None, "mmada, for pictures: folder or hub name of MAGVIT-v2 (showlab/magvitv2), which makes tokens of them"
    )
    image_resolution: int = opt(512, "mmada: side of a picture in pixels, of which 16 are a token's", low=1)
    deterministic: bool = opt(False, "fixed shapes: an answer has the same bits whatever else is decoded, slower")


@dataclass(frozen=True)
class ChatSettings(ModelSettings):
    """Of the chat."""

    system: str | None = opt(None, "system prompt; null = the family's own, if it has one")
    seed: int | None = opt(None, "of the answers' randomness; null = another one each time", low=0)


def read_settings(kind: type[S], arguments: Sequence[str], usage: str) -> S:
    """The settings that are typed. `--help` prints the keys and exits. ValueError: an unknown key, a wrong type, a
    value out of its range, no model."""
    keys = {item.name: item for item in dataclasses.fields(kind)}
    if any(argument in ("--help", "-h", "help") for argument in arguments):
        print(help_text(kind, usage))
        sys.exit(0)
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        if not separator or name not in keys:
            near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), keys, n=1)
            hint = f" Did you mean {near[0]}=...?" if near else ""
            raise ValueError(
                f"{argument!r} is no key=value of this command.{hint} Usage: {usage}; --help lists the keys"
            )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), argument_tree(arguments, keys))
        settings: S = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        item = keys.get(str(error.full_key))
        wanted = f"must be of type {kind_of(item)}" if item is not None else "cannot be read"
        raise ValueError(f"{error.full_key} {wanted}: {str(error).splitlines()[0]}.") from None
    check_values(settings)
    if not settings.model:
        raise ValueError(f"model is not set: give a checkpoint folder or a hub name (org/model). Usage: {usage}")
    return settings


def check_values(settings: ModelSettings) -> None:
    """ValueError: a value out of its range or not among its choices."""
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if value is not None:
            check_entry(item.name, value, item)


def help_text(kind: type[ModelSettings], usage: str) -> str:
    """Every key with type, default and meaning, a line each."""
    lines = [f"usage: {usage}", "", "keys, typed as key=value:"]
    for item in dataclasses.fields(kind):
        choices = f" [{' | '.join(item.metadata['choices'])}]" if item.metadata["choices"] else ""
        lines.append(f"  {item.name:<20} {kind_of(item):<14} {item.default!r:<24} {item.metadata['help']}{choices}")
    return "\n".join(lines)
