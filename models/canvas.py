"""CanvasLM: a model whose canvases of random tokens are denoised whole (DiffusionGemma), over transformers' own classes
and caches.

Shapes: B sequences, L tokens before the canvas, c tokens of the canvas, V vocabulary, D hidden size.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from models import checkpoint as layout_io
from models.attention import Layout
from models.model import DiffusionLM


class CanvasLM(DiffusionLM):
    """`encode` takes the clean tokens into a cache, causally; `denoise` reads a canvas against it. One stack of weights
    does both. What trains and scores masked tokens (`forward`, `hidden`, `logits`) does not exist for it."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.softcap = float(self.hf_config.final_logit_softcapping)
        for tower in (self.encoder.vision_tower, self.encoder.embed_vision):
            tower.requires_grad_(False)

    @property
    def encoder(self) -> Any:
        return self.model.encoder

    @property
    def decoder(self) -> Any:
        return self.model.decoder

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.hf_config)

    def encode(self, ids_BL: Tensor, real_BL: Tensor, positions_BL: Tensor, cache: DynamicCache) -> Tensor:
        """Appends keys and values of clean tokens to the cache; their last hidden states [B, L, D]. real: bool over
        everything in the cache with these tokens, False for padding (left of a prompt)."""
        output = self.encoder(
            input_ids=ids_BL, attention_mask=real_BL, position_ids=positions_BL, past_key_values=cache
        )
        hidden_BLD: Tensor = output.last_hidden_state
        return hidden_BLD

    def denoise(
        self,
        canvas_Bc: Tensor,
        conditioning_BcV: Tensor | None,
        seen: Tensor | dict[str, Tensor | None],
        positions_Bc: Tensor,
        cache: DynamicCache,
        conditioned_B: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, c, D] of a canvas. conditioning: logits of the step before, None in the first; those
        of rows that are not `conditioned` count as none. seen: bool [B, L + c], or `masks` of it."""
        output = self.decoder(
            decoder_input_ids=canvas_Bc,
            past_key_values=cache,
            self_conditioning_logits=conditioning_BcV,
            self_conditioning_mask=conditioned_B,
            decoder_attention_mask=seen,
            decoder_position_ids=positions_Bc,
        )
        hidden_BcD: Tensor = output.last_hidden_state
        return hidden_BcD

    def masks(self, canvas_Bc: Tensor, seen: Tensor, cache: DynamicCache) -> dict[str, Tensor | None]:
        """The decoder's masks by type of layer, of `seen` bool [B, L + c]: the same in all steps of a canvas."""
        found: dict[str, Tensor | None] = self.decoder.create_diffusion_decoder_attention_mask(
            config=self.hf_config,
            inputs_embeds=canvas_Bc[..., None],
            past_key_values=cache,
            decoder_attention_mask=seen,
        )
        return found

    def capped_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] (fp32) of last hidden states [..., D], softly capped as the model was trained:
        cap tanh(logits / cap)."""
        logits: Tensor = self.lm_head(hidden)
        return torch.tanh(logits.float() / self.softcap) * self.softcap

    def checkpoint_weights(self) -> dict[str, Tensor]:
        return layout_io.stored_weights(layout_io.weights_of(self), self.spec.family, self.spec.raw)

    def hidden(
        self, input_ids_BL: Tensor, positions_BL: Tensor, layout: Layout, features: Tensor | None = None
    ) -> Tensor:
        raise ValueError(
            f"{self.family} has no masked tokens whose hidden states could be read: use encode and denoise."
        )


def rows_of(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy of the cache with these of its sequences, in their order."""
    taken = _copied(cache)
    taken.batch_select_indices(rows)
    return taken


def without_padding(cache: DynamicCache, columns: int) -> DynamicCache:
    """A copy of the cache without its first so many columns."""
    shorter = _copied(cache)
    kept = cache.get_seq_length() - columns
    for layer in _layers(shorter):
        layer.keys, layer.values = layer.keys[..., -kept:, :], layer.values[..., -kept:, :]
        if layer.is_sliding:
            layer.cumulative_length = kept
    return shorter


def side_by_side(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """The sequences of two caches in one, padded on the left to the longer one's length."""
    both = _copied(first)
    for layer, other in zip(_layers(both), _layers(second), strict=True):
        width = max(layer.keys.shape[-2], other.keys.shape[-2])
        for name in ("keys", "values"):
            pair = getattr(layer, name), getattr(other, name)
            setattr(layer, name, torch.cat([F.pad(each, (0, 0, width - each.shape[-2], 0)) for each in pair]))
        if layer.is_sliding:
            layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)
    return both


def _copied(cache: DynamicCache) -> DynamicCache:
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _layers(cache: DynamicCache) -> list[Any]:
    """Of both kinds: all tokens, or a sliding window's."""
    return list(cache.layers)
