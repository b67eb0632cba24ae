"""DiffusionLM: a transformers body and head with what a diffusion sampler and trainer must know about them.

Shapes: B sequences, L tokens, N selected positions, V vocabulary, D hidden size.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models import checkpoint as layout_io
from models import lora
from models.attention import ATTENTION_NAME, Layout, Masked, block_causal_mask
from models.families import Decoding
from models.fingerprint import write_base
from models.head import OutputHead
from models.parallel import Parallel
from models.spec import CheckpointSpec, resized, whole_blocks
from models.vision.prompt import Prompt, embedded, numbered, require_rows
from models.vision.seeing import Seeing

if TYPE_CHECKING:
    from peft import LoraConfig

NO_MASK = -1
"""In place of a mask id: no token has it."""


class DiffusionLM(Seeing):
    """Body and head of one family's model. Parameters carry transformers' names; `save` writes the checkpoint's own.

    family: "sdar", ...; attention: "block" | "full"; logit_shift: token i is predicted at position i - 1; mask_id;
    text_vocab_size: ids from here on are image codes or padding rows of the embedding, never to be sampled;
    eos_ids: ids that end a response; pad_id; block_size: the checkpoint's (1 for full attention), and the one that
    `save` writes; tokenizer: None for a folder without one; spec: of the checkpoint's files; base_fingerprint: of
    the weights that adapters are trained on (`models.fingerprint`), kept with them, None where it is not known;
    parallel: what this rank has of a model that a team computes together, None = all of it.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        spec: CheckpointSpec,
        carried: Mapping[str, bytes],
        tokenizer: PreTrainedTokenizerBase | None,
    ):
        super().__init__()
        self.spec = spec
        self.block_size = spec.block_size
        self.model: nn.Module = network.model
        self.lm_head = OutputHead(network.lm_head)
        self.hf_config = network.config.get_text_config()
        self._carried = dict(carried)
        self.tokenizer = tokenizer
        self.vision = getattr(network, "vision", None)
        self.train_vision(None)
        self.adapters: LoraConfig | None = None
        self.parallel: Parallel | None = None
        self.base_fingerprint: str | None = None
        self.mask_id = mask_id_of(spec, tokenizer)
        self.text_vocab_size = _text_vocab_size(spec, tokenizer, int(self.hf_config.vocab_size))
        self.eos_ids = _eos_ids(spec, tokenizer)
        pads = layout_io.first_ids(spec.raw.get("pad_token_id"), spec.generation.get("pad_token_id"))
        tokenizer_pad = tokenizer.pad_token_id if tokenizer is not None else None
        self.pad_id: int | None = (
            pads[0] if pads else (tokenizer_pad if tokenizer_pad is not None else next(iter(self.eos_ids), None))
        )
        self._require_ids_in_the_vocabulary()

    def _require_ids_in_the_vocabulary(self) -> None:
        named = {"eos_token_id": self.eos_ids, "pad_token_id": () if self.pad_id is None else (self.pad_id,)}
        for name, ids in named.items():
            if beyond := [i for i in ids if not 0 <= i < self.hf_config.vocab_size]:
                raise ValueError(
                    f"{self.spec.folder}: {name} {beyond[0]} (config.json, generation_config.json or the tokenizer) is "
                    f"beyond the embedding's {self.hf_config.vocab_size} ids: correct it."
                )

    @property
    def family(self) -> str:
        return self.spec.family.name

    @property
    def attention(self) -> Literal["block", "full"]:
        return self.spec.family.attention

    @property
    def logit_shift(self) -> bool:
        return self.spec.family.logit_shift

    @property
    def decoding(self) -> Decoding:
        return self.spec.family.decoding

    @property
    def end_of_response_id(self) -> int:
        """The id that a training response ends with: the chat's end of turn where the tokenizer has it, else the
        first eos id."""
        turn = self.spec.family.end_of_turn
        known = self.tokenizer.get_vocab().get(turn) if self.tokenizer is not None and turn is not None else None
        if known is None and not self.eos_ids:
            raise ValueError(
                "the checkpoint names no eos id (config.json, generation_config.json, tokenizer): add eos_token_id."
            )
        return known if known is not None else self.eos_ids[0]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def hidden(
        self, input_ids_BL: Tensor, positions_BL: Tensor, layout: Layout, features: Tensor | None = None
    ) -> Tensor:
        """Last hidden states [B, L, D] under the attention of `layout`. features: [rows, D], of which an id -1 - row
        stands for one (`models.vision.prompt`)."""
        assert self.hf_config._attn_implementation == ATTENTION_NAME, "another attention would ignore the layout"
        given = {"input_ids": input_ids_BL}
        if features is not None or self.image_id is not None:  # a family that sees: one order of modules, for ZeRO-3
            tokens_BLD = self.model.embed_tokens(input_ids_BL.clamp_min(0))  # type: ignore[operator]
            if features is not None:
                tokens_BLD = embedded(tokens_BLD, input_ids_BL, features)
            given = {"inputs_embeds": tokens_BLD}
        output = self.model(**given, position_ids=positions_BL, use_cache=False, layout=layout)
        return output.last_hidden_state

    def forward(
        self,
        input_ids_BL: Tensor,
        positions_BL: Tensor,
        layout: Layout,
        index_N: Tensor,
        targets_N: Tensor,
        entropy: bool = False,
        pictures: Sequence[Prompt] = (),
    ) -> Tensor:
        """Log-probabilities [N] (fp32, temperature 1) of `targets_N` read at the flat positions `index_N` of [B * L];
        entropy: [2, N], the entropies there second. Logits exist only for these positions (`OutputHead`). pictures: the
        prompts whose features the negative ids number."""
        features = self.features_of(pictures) if pictures else None
        hidden_BLD = self.hidden(input_ids_BL, positions_BL, layout, features)
        hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, index_N)
        return self.lm_head(hidden_ND, targets_N, entropy)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, block_size: int | None = None, features: Tensor | None = None) -> Tensor:
        """Raw logits [B, L, V] under the family's own attention: no shift applied, no mask id removed.

        block_size: block families only; default the checkpoint's. ValueError for full attention. features: rows [rows,
        D] for all positions that hold the image id, in reading order; ValueError for another number of them. Of a
        network that runs only whole blocks (LLaDA2.2) what the last block lacks counts as masks.
        """
        if self.attention == "full" and block_size is not None:
            raise ValueError(f"block_size={block_size}: {self.family} has full attention, leave block_size out.")
        B, L = input_ids.shape
        input_ids = numbered(input_ids.to(self.device))
        require_rows(int((input_ids < 0).sum()), 0 if features is None else len(features))
        mask, size = None, block_size or self.block_size
        run = -(-L // size) * size if whole_blocks(self.spec) > 1 else L
        if self.attention == "block":
            mask = block_causal_mask(run, size, self.device)
        positions = torch.arange(run, device=self.device).expand(B, run)
        input_ids = F.pad(input_ids, (0, run - L), value=self.mask_id)
        return self.lm_head(self.hidden(input_ids, positions, Masked(mask), features)[:, :L])

    def enable_gradient_checkpointing(self) -> None:
        for part in (self.model, *self.towers):
            of_5_17 = part.gradient_checkpointing_enable  # transformers 5.23 has another name and warns of this one
            enable: Any = getattr(part, "activation_checkpointing_enable", of_5_17)
            enable({"use_reentrant": False})

    def copy_as(self, dtype: torch.dtype, device: torch.device | None = None) -> "DiffusionLM":
        """A copy for inference with parameters in `dtype`; buffers keep theirs (rounding inv_freq would distort the
        positions). device: default the model's."""
        return self.twin(
            lambda parameter: parameter.detach().to(device=device or parameter.device, dtype=dtype, copy=True)
        ).to(device=device or self.device)

    def twin(self, weight_of: Callable[[nn.Parameter], Tensor]) -> "DiffusionLM":
        """A copy for inference whose parameters are what `weight_of` gives for these."""
        memo: dict[int, Any] = {
            id(parameter): nn.Parameter(weight_of(parameter), requires_grad=False) for parameter in self.parameters()
        }
        return copy.deepcopy(self, memo).eval()

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """Weights under the names of the original layout."""
        tied = ("lm_head.weight",) if self.hf_config.tie_word_embeddings else ()
        weights = {name: weight for name, weight in self.state_dict().items() if name not in tied}
        return layout_io.stored_weights(weights, self.spec.family, self.spec.raw)

    def add_adapters(
        self, adapters: lora.Adapters, base: str | Path, seed: int, dtype: torch.dtype | None = None
    ) -> None:
        """Freezes the model and adds adapters to its body; `base`: the checkpoint that it came from. dtype: of the
        adapters; default the model's."""
        self.requires_grad_(False)
        self.adapters = adapters.config(self.model, str(base))
        lora.add(self.model, self.adapters, seed, dtype)

    def merge_adapters(self) -> None:
        """Folds the adapters into the weights: a model like any other, all of it trainable."""
        lora.merge(self.model)
        self.requires_grad_(True)
        self.train_vision(None)
        self.adapters = self.base_fingerprint = None

    def save(
        self,
        path: str | Path,
        besides: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the checkpoint in its original layout: weights, config.json, tokenizer and carried files; `besides`
        names more weights to keep with them. Of a model with adapters only these are written (`models.lora`). dtype: of
        the weights in the files; default the model's."""
        carried = self._carried | resized(self.spec, self.block_size)
        if self.adapters is not None:
            lora.write(Path(path), self.model, self.adapters, carried, dtype)
            if self.base_fingerprint is not None:
                write_base(Path(path), str(self.adapters.base_model_name_or_path), self.base_fingerprint)
            return
        weights = self.checkpoint_weights() | dict(besides or {})
        exact = layout_io.kept_names(self, self.spec)
        layout_io.write_checkpoint(Path(path), weights, carried, dtype or self.dtype, exact)


def mask_id_of(spec: CheckpointSpec, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The mask id: of config.json, else the tokenizer's, else the family's; NO_MASK of a family without one. ValueError
    where none is in the vocabulary."""
    family, vocab_size = spec.family, int(spec.raw["vocab_size"])
    if family.noise == "uniform":
        return NO_MASK
    ids = layout_io.first_ids(
        spec.raw.get("mask_token_id"),
        tokenizer.mask_token_id if tokenizer is not None else None,
        tokenizer.get_vocab().get(family.mask_token) if tokenizer is not None and family.mask_token else None,
        family.mask_id,
    )
    if not ids or ids[0] >= vocab_size:
        raise ValueError(
            f"no mask id below vocab_size {vocab_size} in config.json (mask_token_id), the tokenizer (mask_token) or "
            f"the family {family.name} (found {list(ids)}): add mask_token_id to config.json."
        )
    return ids[0]


def _text_vocab_size(spec: CheckpointSpec, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> int:
    text = vocab_size if spec.family.text_vocab_size is None else spec.family.text_vocab_size(spec.raw)
    named = vocab_size if tokenizer is None else max(tokenizer.get_vocab().values(), default=-1) + 1
    return min(vocab_size, text, named)


def _eos_ids(spec: CheckpointSpec, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    turn = None
    if tokenizer is not None and spec.family.end_of_turn is not None:
        turn = tokenizer.get_vocab().get(spec.family.end_of_turn)
    return layout_io.first_ids(
        spec.raw.get("eos_token_id"),
        spec.generation.get("eos_token_id"),
        tokenizer.eos_token_id if tokenizer is not None else None,
        turn,
    )
