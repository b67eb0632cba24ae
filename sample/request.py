"""A requested response: its prompt, and the key of its random numbers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from models import DiffusionLM, Prompt
from sample.config import SamplingConfig
from sample.draw import Drawing
from sample.rollout import Key


@dataclass(frozen=True)
class Request:
    """index: its place among those of one `generate`; group: the place of its prompt. seed: that its key is hashed
    with. drawing: how its tokens are drawn, None = as the choices say."""

    index: int
    group: int
    prompt: Prompt
    key: Key
    max_new_tokens: int
    seed: int
    drawing: Drawing | None = None

    @property
    def prompt_ids(self) -> list[int]:
        return self.prompt.ids


def hash_key(key: Key, seed: int = 0) -> int:
    """A signed 64-bit name of a sample under a seed, stable across processes and machines."""
    digest = hashlib.blake2b(repr((seed, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def prompt_key(prompt: Prompt) -> int:
    """Names a prompt by its ids, and by the pictures of which they do not tell."""
    return hash_key((*prompt.ids, prompt.name()) if prompt.has_rows else tuple(prompt.ids))


def requests_of(
    prompts: Sequence[Sequence[int] | Prompt],
    n: int,
    keys: Sequence[Key] | None,
    model: DiffusionLM,
    config: SamplingConfig,
    tokens_after: int = 0,
) -> list[Request]:
    """n requests a prompt, prompt-major, under their keys or (hash of the prompt's ids and pictures, index in the
    group). tokens_after: what stands right of a response.

    ValueError: empty prompt, mask id or an unknown id in a prompt, prompt and response longer than the model's
    positions, wrong number of keys.
    """
    if n < 1:
        raise ValueError(f"n={n}: ask for at least one response a prompt.")
    if keys is not None and len(keys) != len(prompts) * n:
        raise ValueError(f"keys has {len(keys)} entries; {len(prompts)} prompts x n={n} need {len(prompts) * n}.")
    requests: list[Request] = []
    for group, given in enumerate(prompts):
        ids = given.ids if isinstance(given, Prompt) else [int(i) for i in given]
        check_prompt(ids, f"prompt {group}", model, config.max_new_tokens + tokens_after)
        prompt = Prompt.of(given)
        digest = prompt_key(prompt)
        for member in range(n):
            index = len(requests)
            key = keys[index] if keys is not None else (digest, member)
            parts = key if isinstance(key, (tuple, list)) else (key,)
            plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
            requests.append(Request(index, group, prompt, plain, config.max_new_tokens, config.seed))
    return requests


def check_prompt(ids: Sequence[int], name: str, model: DiffusionLM, max_new_tokens: int) -> None:
    """ValueError as of `requests_of`."""
    vocab_size, positions = int(model.hf_config.vocab_size), int(model.hf_config.max_position_embeddings)
    if not ids:
        raise ValueError(f"{name} is empty: give at least one token id.")
    if model.mask_id >= 0 and model.mask_id in ids:
        raise ValueError(f"{name} contains the mask id {model.mask_id}: it would count as a position to fill.")
    wrong = [i for i in (min(ids), max(ids)) if not 0 <= i < vocab_size and i != model.image_id]
    if wrong:
        raise ValueError(f"{name} contains the id {wrong[0]}; the model's vocabulary has {vocab_size} ids.")
    if len(ids) + max_new_tokens > positions:
        seen = sum(i < 0 for i in ids)
        pictures = f", {seen} of them of pictures" if seen else ""
        raise ValueError(
            f"{name} has {len(ids)} tokens{pictures}; with max_new_tokens={max_new_tokens} they exceed the {positions} "
            "positions of the model (max_position_embeddings): shorten one of them."
        )
