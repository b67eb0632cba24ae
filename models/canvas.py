"""CanvasLM: a model whose canvases of random tokens are denoised whole (DiffusionGemma), over transformers' own classes
and caches.

Shapes: B sequences, L tokens before the canvas (in training of the whole text), c tokens of the canvas, N trained
tokens, V vocabulary, D hidden size.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from models import checkpoint as layout_io
from models import lora
from models.attention import Layout
from models.head import LOGITS_CHUNK_ELEMENTS
from models.model import DiffusionLM
from models.vision.prompt import Prompt

_NOT_ADAPTED = r"encoder\.vision_tower\..*|encoder\.embed_vision\..*|.*\.router\..*|decoder\.self_conditioning\..*"


@dataclass(frozen=True)
class CanvasRows:
    """How padded rows of a text and one canvas are trained: the canvas sees the first `seen_B` tokens of its text;
    `conditioned_B`, bool, whether it is read again with what the first reading says of it."""

    seen_B: Tensor
    conditioned_B: Tensor


class CanvasLM(DiffusionLM):
    """`encode` takes the clean tokens into a cache, causally; `denoise` reads a canvas against it. One stack of weights
    does both. What scores masked tokens (`hidden`, `logits`) does not exist for it. Vision and the routers of experts
    are frozen."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.softcap = float(self.hf_config.final_logit_softcapping)
        self._freeze()

    def _freeze(self) -> None:
        frozen = [module for name, module in self.model.named_modules() if name.endswith(".router")]
        for module in (self.encoder.vision_tower, self.encoder.embed_vision, *frozen):
            module.requires_grad_(False)

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

    def forward(
        self,
        input_ids_BL: Tensor,
        positions_BL: Tensor,
        layout: Layout | CanvasRows,
        index_N: Tensor,
        targets_N: Tensor,
        entropy: bool = False,
        pictures: Sequence[Prompt] = (),
    ) -> Tensor:
        """Log-probabilities [N] (fp32, temperature 1) of `targets_N` read at the flat positions `index_N` of
        [B * (L + c)]: in the text, padded on the right, the encoder's of the next token; in the canvas behind it the
        decoder's of the token there. Conditioned rows are read twice, the first time without gradient."""
        if not isinstance(layout, CanvasRows) or entropy or pictures:
            raise ValueError(f"{self.family} trains on a text and one canvas alone, without entropies or pictures.")
        c = self.block_size
        (ids_BL, canvas_Bc), (text_BL, place_Bc) = (
            (each[:, :-c], each[:, -c:]) for each in (input_ids_BL, positions_BL)
        )
        cache = DynamicCache()  # of all tokens: a window would keep a text's last ones, not those before the canvas
        encoded_BLD = self.encode(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), text_BL, cache)
        masks, conditioning = self._training_masks(layout.seen_B, ids_BL.shape[1]), None
        if bool(layout.conditioned_B.any()):
            with torch.no_grad():
                first = self.denoise(canvas_Bc, None, masks, place_Bc, cache)
                conditioning = self.capped_logits(first).to(self.dtype)
        decoded_BcD = self.denoise(canvas_Bc, conditioning, masks, place_Bc, cache, layout.conditioned_B)
        hidden_ND = torch.cat([encoded_BLD, decoded_BcD], 1).flatten(0, 1).index_select(0, index_N)
        return self._log_probs(hidden_ND, targets_N)

    def _training_masks(self, seen_B: Tensor, text_tokens: int) -> dict[str, Tensor | None]:
        """By type of layer, bool [B, 1, c, L + c]: what a canvas sees in sampling, where a sliding layer's cache holds
        the last window - 1 tokens before it."""
        place_L, before = torch.arange(text_tokens, device=seen_B.device), seen_B[:, None]
        whole_BL = place_L < before
        near_BL = whole_BL & (place_L > before - self.hf_config.sliding_window)
        found: dict[str, Tensor | None] = {}
        for name, seen_BL in (("full_attention", whole_BL), ("sliding_attention", near_BL)):
            row = F.pad(seen_BL, (0, self.block_size), value=True)
            found[name] = row[:, None, None].expand(-1, 1, self.block_size, -1)
        return found

    def _log_probs(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """In pieces of bounded memory, whose logits are computed again in the backward pass."""

        def of_piece(hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
            return -F.cross_entropy(self.capped_logits(hidden_nD), targets_n, reduction="none")

        rows = max(1, LOGITS_CHUNK_ELEMENTS // self.lm_head.weight.shape[0])
        pieces = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([checkpoint(of_piece, *piece, use_reentrant=False) for piece in pieces])

    def add_adapters(
        self, adapters: lora.Adapters, base: str | Path, seed: int, dtype: torch.dtype | None = None
    ) -> None:
        """As of any model, on attention and plain MLPs of the encoder and of the decoder, each with its own."""
        self.requires_grad_(False)
        self.adapters = adapters.config(self.model, str(base))
        self.adapters.exclude_modules = _NOT_ADAPTED
        lora.add(self.model, self.adapters, seed, dtype)

    def merge_adapters(self) -> None:
        raise ValueError(
            f"adapters of {self.family} cannot be merged: encoder and decoder have one weight, and adapters of their "
            "own. Use them as they are."
        )

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
