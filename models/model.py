"""DiffusionLM: a transformers body and head with what a diffusion sampler and trainer must know about them.

Shapes: B sequences, L tokens, N selected positions, V vocabulary, D hidden size.
"""

import copy
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models import checkpoint as layout_io
from models import lora
from models.attention import ATTENTION_NAME, Layout, Masked, block_causal_mask
from models.families import Decoding, Family, find_family
from models.folder import read_json, resolve_folder, weight_names
from models.head import OutputHead
from models.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from peft import LoraConfig


class DiffusionLM(nn.Module):
    """Body and head of one family's model. Parameters carry transformers' names; `save` writes the checkpoint's own.

    family: "sdar", ...; attention: "block" | "full"; logit_shift: token i is predicted at position i - 1; mask_id;
    text_vocab_size: ids from here on are image codes or padding rows of the embedding, never to be sampled;
    eos_ids: ids that end an answer; pad_id; block_size: the checkpoint's (1 for full attention); tokenizer: None
    for a folder without one.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        family: Family,
        raw_config: Mapping[str, Any],
        carried: Mapping[str, bytes],
        tokenizer: PreTrainedTokenizerBase | None,
        generation_config: Mapping[str, Any],
    ):
        super().__init__()
        self.model: nn.Module = network.model
        self.lm_head = OutputHead(network.lm_head)
        self.hf_config = network.config
        self._family, self._raw_config, self._carried = family, dict(raw_config), dict(carried)
        self.tokenizer = tokenizer
        self.adapters: LoraConfig | None = None
        self.mask_id = _mask_id(family, raw_config, tokenizer)
        self.text_vocab_size = _text_vocab_size(family, raw_config, tokenizer, int(self.hf_config.vocab_size))
        self.eos_ids = _eos_ids(family, raw_config, generation_config, tokenizer)
        pads = layout_io.first_ids(raw_config.get("pad_token_id"), generation_config.get("pad_token_id"))
        tokenizer_pad = tokenizer.pad_token_id if tokenizer is not None else None
        self.pad_id: int | None = (
            pads[0] if pads else (tokenizer_pad if tokenizer_pad is not None else next(iter(self.eos_ids), None))
        )

    @property
    def family(self) -> str:
        return self._family.name

    @property
    def attention(self) -> Literal["block", "full"]:
        return self._family.attention

    @property
    def logit_shift(self) -> bool:
        return self._family.logit_shift

    @property
    def decoding(self) -> Decoding:
        return self._family.decoding

    @property
    def block_size(self) -> int:
        return int(self._raw_config.get("block_size") or self._family.default_block_size)

    @block_size.setter
    def block_size(self, tokens: int) -> None:
        """Block families: the size that a checkpoint saved from here on names."""
        self._raw_config["block_size"] = tokens
        self._carried["config.json"] = (json.dumps(self._raw_config, indent=2) + "\n").encode()

    @property
    def end_of_answer_id(self) -> int:
        """The id that a training answer ends with: the chat's end of turn where the tokenizer has it, else the
        first eos id."""
        turn = self._family.end_of_turn
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

    def hidden(self, input_ids_BL: Tensor, positions_BL: Tensor, layout: Layout) -> Tensor:
        """Last hidden states [B, L, D] with attention as `layout` says."""
        assert self.hf_config._attn_implementation == ATTENTION_NAME, "another attention would ignore the layout"
        output = self.model(input_ids=input_ids_BL, position_ids=positions_BL, use_cache=False, layout=layout)
        return output.last_hidden_state

    def forward(
        self, input_ids_BL: Tensor, positions_BL: Tensor, layout: Layout, index_N: Tensor, targets_N: Tensor
    ) -> Tensor:
        """Log-probabilities [N] (fp32, temperature 1) of `targets_N` read at the flat positions `index_N` of [B * L].
        Logits exist only for these positions (`OutputHead`)."""
        hidden_ND = self.hidden(input_ids_BL, positions_BL, layout).flatten(0, 1).index_select(0, index_N)
        return self.lm_head(hidden_ND, targets_N)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, block_size: int | None = None) -> Tensor:
        """Raw logits [B, L, V] under the family's own attention: no shift applied, no mask id removed.

        block_size: block families only; default the checkpoint's. ValueError for full attention.
        """
        if self.attention == "full" and block_size is not None:
            raise ValueError(f"block_size={block_size}: {self.family} has full attention, leave block_size out.")
        B, L = input_ids.shape
        input_ids = input_ids.to(self.device)
        mask = None
        if self.attention == "block":
            mask = block_causal_mask(L, block_size or self.block_size, self.device)
        positions = torch.arange(L, device=self.device).expand(B, L)
        return self.lm_head(self.hidden(input_ids, positions, Masked(mask)))

    def enable_gradient_checkpointing(self) -> None:
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]

    def copy_as(self, dtype: torch.dtype, device: torch.device | None = None) -> "DiffusionLM":
        """A copy for inference with parameters in `dtype`; buffers keep theirs (rounding inv_freq would spoil the
        positions). device: default the model's."""
        memo: dict[int, Any] = {}
        for parameter in self.parameters():
            weight = parameter.detach().to(device=device or parameter.device, dtype=dtype, copy=True)
            memo[id(parameter)] = nn.Parameter(weight, requires_grad=False)
        twin = copy.deepcopy(self, memo)
        return twin.to(device=device or self.device).eval()

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """Weights under the names of the original layout."""
        weights = dict(self.state_dict())
        if self.hf_config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        return layout_io.stored_weights(weights, self._family, self._raw_config)

    def add_adapters(self, adapters: lora.Adapters, base: str | Path, seed: int) -> None:
        """Freezes the model and adds adapters to its body; `base`: the checkpoint that it came from."""
        self.requires_grad_(False)
        self.adapters = adapters.config(self.model, str(base))
        lora.add(self.model, self.adapters, seed)

    def merge_adapters(self) -> None:
        """Folds the adapters into the weights: a model like any other, all of it trainable."""
        lora.merge(self.model)
        self.requires_grad_(True)
        self.adapters = None

    def save(self, path: str | Path, besides: Mapping[str, Tensor] | None = None) -> None:
        """Writes the checkpoint in its original layout: weights, config.json, tokenizer and carried files; `besides`
        names more weights to keep with them. Of a model with adapters only these are written (`models.lora`)."""
        if self.adapters is not None:
            lora.write(Path(path), self.model, self.adapters, self._carried)
            return
        weights = self.checkpoint_weights() | dict(besides or {})
        layout_io.write_checkpoint(Path(path), weights, self._carried, self.dtype)


def load_model(
    path: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    model_base: str | None = None,
    random_init_seed: int | None = None,
    besides: Collection[str] = (),
) -> DiffusionLM:
    """A model from a checkpoint folder (or hub name) in its original layout, or from a folder of adapters.

    dtype: "float32" | "bfloat16" | "float16". model_base: the family's name, when config.json alone does not tell.
    random_init_seed: the folder holds config.json and tokenizer but no weights; they are drawn from this seed.
    besides: weights of the folder that are no part of the model.
    ValueError: no such folder, unknown family, weights that do not fit the config.
    """
    folder = resolve_folder(path)
    if (folder / lora.CONFIG).is_file():
        return _load_adapted(folder, dtype, device, model_base)
    _check_device(device)
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"dtype {dtype!r} is not a torch type: use float32, bfloat16 or float16.")
    raw_config = read_json(folder / "config.json")
    family = find_family(raw_config, model_base, str(folder), weight_names(folder))
    tokenizer = read_tokenizer(folder, family)
    if random_init_seed is None:
        network = layout_io.read_weights(folder, family, raw_config, torch_dtype, device, besides)
    else:
        network = layout_io.random_network(family, raw_config, torch_dtype, random_init_seed)
    carried = layout_io.read_carried_files(folder)
    generation_config = read_json(folder / "generation_config.json")
    model = DiffusionLM(network, family, raw_config, carried, tokenizer, generation_config)
    return model.to(device=device).eval()


def _check_device(device: str | torch.device) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {str(device)!r} is none that torch knows: use cpu, cuda or cuda:0.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no GPU here. Use cpu.")


def _load_adapted(
    folder: Path, dtype: str | torch.dtype, device: str | torch.device, model_base: str | None
) -> DiffusionLM:
    """The base that adapter_config.json names, with the folder's adapters; block size and carried files are the
    folder's."""
    base = str(read_json(folder / lora.CONFIG).get("base_model_name_or_path") or "")
    if not base or (resolve_folder(base) / lora.CONFIG).is_file():
        raise ValueError(f"{folder}/{lora.CONFIG}: base_model_name_or_path is {base!r}, which is no whole checkpoint.")
    model = load_model(base, dtype, device, model_base)
    model.adapters = lora.read(folder, model.model.requires_grad_(False))
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    block_size = read_json(folder / "config.json").get("block_size")
    if block_size and model.attention == "block" and block_size != model.block_size:
        model.block_size = int(block_size)
    return model.to(device=device).eval()


def _mask_id(family: Family, raw_config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> int:
    ids = layout_io.first_ids(
        raw_config.get("mask_token_id"),
        tokenizer.mask_token_id if tokenizer is not None else None,
        tokenizer.get_vocab().get(family.mask_token) if tokenizer is not None and family.mask_token else None,
        family.mask_id,
    )
    if not ids or ids[0] >= int(raw_config["vocab_size"]):
        raise ValueError(
            f"no mask id below vocab_size {raw_config['vocab_size']} in config.json (mask_token_id), the tokenizer "
            f"(mask_token) or the family {family.name} (found {list(ids)}): add mask_token_id to config.json."
        )
    return ids[0]


def _text_vocab_size(
    family: Family, raw_config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> int:
    text = vocab_size if family.text_vocab_size is None else family.text_vocab_size(raw_config)
    named = vocab_size if tokenizer is None else max(tokenizer.get_vocab().values()) + 1
    return min(vocab_size, text, named)


def _eos_ids(
    family: Family,
    raw_config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[int, ...]:
    turn = None
    if tokenizer is not None and family.end_of_turn is not None:
        turn = tokenizer.get_vocab().get(family.end_of_turn)
    return layout_io.first_ids(
        raw_config.get("eos_token_id"),
        generation_config.get("eos_token_id"),
        tokenizer.eos_token_id if tokenizer is not None else None,
        turn,
    )
