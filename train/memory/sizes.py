"""Bytes of the tensors that a network takes in training and sampling, part by part, from its sizes alone.

What autograd keeps of a decoder layer is counted from the operations of transformers' Qwen and Llama classes with the
attention of `models.attention`; tests compare it with the storages that real runs allocate.

Shapes: T packed tokens, N trained tokens, D hidden size, F inner size of the MLP, H query heads, G key-value heads, d
head size, V vocabulary, b block size.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.attention import Packed
from models.experts import dense_layers, experts_of, experts_per_token
from models.head import LOGITS_CHUNK_ELEMENTS
from models.log_probs import PIECE_ELEMENTS
from train.algorithm.packing import MicroBatch

FP32, BF16 = 4, 2
ADAM_BYTES = 8
"""Of a trained parameter: two moments in fp32."""
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that may have an adapter."""


def _shared_inner(hf_config: Any) -> int:
    """Inner size of what all tokens of a mixture's layer go through; DiffusionGemma's is a whole MLP."""
    if hasattr(hf_config, "top_k_experts"):
        return int(hf_config.intermediate_size)
    return int(getattr(hf_config, "n_shared_experts", 0) * hf_config.moe_intermediate_size)


@dataclass(frozen=True)
class Network:
    """Sizes of a causal or diffusion language model.

    parameters: all of it; body: without embedding and head; largest: elements of its largest matrix in the body;
    layers: decoder layers; head_norms: queries and keys are normed; experts: of a mixture's layer, experts_per_token
    of them at work, expert_parameters in all, inner then that of one expert, shared_inner that of the shared ones, and
    dense_inner that of the dense_layers, which have none; tied: the head is the embedding. vision:
    parameters of a tower and of what projects its output, which are not of the body; tower: of that alone.
    """

    parameters: int
    body: int
    largest: int
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    vocab: int
    head_norms: bool
    tied: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_parameters: int = 0
    shared_inner: int = 0
    dense_inner: int = 0
    dense_layers: int = 0
    vision: int = 0
    tower: int = 0

    @staticmethod
    def of(network: nn.Module, hf_config: Any) -> "Network":
        """The sizes of a network of transformers, on the meta device too."""
        sizes = {name: p.numel() for name, p in network.named_parameters()}
        outer = {name: size for name, size in sizes.items() if "embed_tokens" in name or "lm_head" in name}
        seeing = {name: size for name, size in sizes.items() if name.startswith("vision.")}
        body = {name: size for name, size in sizes.items() if name not in outer | seeing}
        heads = int(hf_config.num_attention_heads)
        experts = experts_of(hf_config)
        return Network(
            parameters=sum(sizes.values()),
            body=sum(body.values()),
            largest=max(body.values()),
            layers=int(hf_config.num_hidden_layers),
            hidden=int(hf_config.hidden_size),
            inner=int(hf_config.moe_intermediate_size if experts else hf_config.intermediate_size),
            heads=heads,
            key_heads=int(getattr(hf_config, "num_key_value_heads", None) or heads),
            head_size=int(getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads),
            vocab=int(hf_config.vocab_size),
            head_norms=any(name.endswith("q_norm.weight") for name in sizes),
            tied=bool(hf_config.tie_word_embeddings),
            experts=experts,
            experts_per_token=experts_per_token(hf_config) if experts else 0,
            vision=sum(seeing.values()),
            tower=sum(size for name, size in seeing.items() if name.startswith("vision.tower.")),
            expert_parameters=sum(size for name, size in body.items() if ".experts." in name),
            shared_inner=_shared_inner(hf_config) if experts else 0,
            dense_inner=int(hf_config.intermediate_size) if experts else 0,
            dense_layers=dense_layers(hf_config) if experts else 0,
        )

    @property
    def largest_part(self) -> float:
        """Elements of the most that ZeRO-3 and FSDP2 read or gather at a time: a layer, or the head."""
        return max(self.vocab * self.hidden, self.body / self.layers)

    @property
    def key_value_elements(self) -> int:
        """Of one token in a cache of all layers."""
        return 2 * self.layers * self.key_heads * self.head_size


@dataclass(frozen=True)
class Packing:
    """Sizes of a micro-batch: packed tokens, trained tokens, keys (positions that spans attend to, each counted once
    a span), and elements of the spans' masks over them."""

    tokens: float
    trained: float
    keys: float
    masks: float

    @staticmethod
    def of(batch: MicroBatch) -> "Packing":
        layout = batch.layout
        assert isinstance(layout, Packed)
        keys = masks = 0
        for row in layout.rows:
            seen = 0
            for span in row:
                own = span.num_shared + span.num_own
                keys += (seen + own) * span.rows
                if span.mask_QQ is not None:
                    masks += own * (seen + own) * span.rows
                seen += span.num_shared
        return Packing(batch.ids.numel(), len(batch.targets), keys, masks)

    def scaled(self, tokens: float) -> "Packing":
        """A micro-batch of so many tokens of rows like these."""
        ratio = tokens / self.tokens
        return Packing(*(getattr(self, name) * ratio for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Precision:
    """How a network is trained: half = with bf16 weights over fp32 masters; adapted: the linear layers with adapters of
    `rank`, None where all weights are trained; checkpointing: of gradients, layer by layer; head: log-probabilities are
    read, not values; fp32_logits: from logits that are not rounded (`models.log_probs.keeps_fp32`)."""

    half: bool
    checkpointing: bool
    adapted: Collection[str] | None = None
    rank: int = 0
    head: bool = True
    fp32_logits: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number that a linear layer puts out."""
        return BF16 if self.half else FP32

    def count(self, *names: str) -> int:
        """How many of these linear layers learn."""
        return len(names) if self.adapted is None else len(set(names) & set(self.adapted))

    def inputs(self, size: int, *names: str) -> int:
        """Bytes per token that autograd keeps of the input that linear layers share."""
        return self.width * size * min(1, self.count(*names))


def layer_bytes(net: Network, packing: Packing, precision: Precision) -> float:
    """What autograd keeps of one decoder layer, with its input."""
    a, T = precision.width, packing.tokens
    D, F, H, G, d = net.hidden, net.inner, net.heads, net.key_heads, net.head_size
    normed = 0 if precision.adapted is not None else 1  # a trained norm keeps what it scales
    norms = 2 * (FP32 * D + normed * a * D)
    attention = (
        precision.inputs(D, "q_proj", "k_proj", "v_proj") + a * H * d + precision.inputs(H * d, "o_proj") + FP32 * H
    )
    attention += a * H * d
    if net.head_norms:
        attention += (H + G) * d * (FP32 + normed * a)
    if net.experts:
        k, dense = net.experts_per_token, net.dense_layers / net.layers
        routed = FP32 * net.experts + k * a * ((1 + normed) * D + (3 + normed) * F)
        shared = _mlp_bytes(D, net.shared_inner, precision)
        mlp = dense * _mlp_bytes(D, net.dense_inner, precision) + (1 - dense) * (routed + shared)
    else:
        mlp = _mlp_bytes(D, F, precision)
    ranks = a * precision.rank * precision.count(*ADAPTED) if precision.adapted is not None else 0
    return T * (norms + attention + mlp + ranks) + a * 2 * G * d * packing.keys


def _mlp_bytes(D: int, F: int, precision: Precision) -> int:
    """What autograd keeps of a token in a plain MLP of this inner size."""
    kept = precision.inputs(D, "gate_proj", "up_proj")
    return kept + 3 * precision.width * F + precision.inputs(F, "down_proj")


def micro_batch_bytes(net: Network, packing: Packing, precision: Precision) -> float:
    """The most that one forward and backward pass holds beside weights and gradients: at the end of the forward, where
    the head's or the last norm's gradient is made, or inside the last layer."""
    a, T, D, layers = precision.width, packing.tokens, net.hidden, net.layers
    kept = layer_bytes(net, packing, precision)
    between = layers * (a * T * D if precision.checkpointing else kept)
    rest = a * packing.masks + 2 * a * T * net.head_size
    last_norm = (FP32 + a) * T * D
    inside = kept - a * T * D if precision.checkpointing else 0.0
    head = max(_head_bytes(net, packing, precision))
    return (
        rest
        + between
        + max(
            last_norm + head,
            last_norm + 4 * FP32 * T * D,
            inside + _layer_gradient_bytes(net, packing, precision),
        )
    )


def _layer_gradient_bytes(net: Network, packing: Packing, precision: Precision) -> float:
    """What the backward pass of a layer makes for itself, at the end of its MLP."""
    a, T, D, F = precision.width, packing.tokens, net.hidden, net.inner
    weight = 0 if precision.adapted is not None else net.largest * (FP32 + (BF16 if precision.half else 0))
    if net.experts:
        return T * a * (D + net.experts_per_token * (D + F)) + weight
    made = 2 * a * F + (0 if precision.count("down_proj") else a * F)
    return T * (a * D + made) + weight


def _head_bytes(net: Network, packing: Packing, precision: Precision) -> tuple[float, float]:
    """Forward and backward of the head: hidden states and logits of the trained tokens, in chunks that are computed
    again where there are several."""
    a, N, V, D = precision.width, packing.trained, net.vocab, net.hidden
    hidden = a * N * D
    if not precision.head:
        return hidden, hidden
    chunk = max(1, LOGITS_CHUNK_ELEMENTS // V)
    rows, several = min(N, chunk), chunk < N
    rounded = precision.half and not precision.fp32_logits
    logits = (a if rounded else FP32) * rows * V
    slope = a * rows * V if precision.half and precision.fp32_logits else 0
    piece = FP32 * min(rows * V, PIECE_ELEMENTS)
    copy = piece if rounded else 0
    pieces = piece + copy + (piece if rows * V > PIECE_ELEMENTS else 0)
    weight, whole_weight = (0, 0) if precision.adapted is not None else (a * V * D, FP32 * V * D)
    summed = whole_weight if several else 0
    backward = logits + max(pieces, slope + a * rows * D + weight + summed)
    if precision.half and weight:
        backward = max(backward, weight + whole_weight + summed)
    return hidden + logits + copy, hidden + backward


def forward_bytes(
    net: Network, tokens: float, width: int, seen_tokens: float = 0.0, adapted: Collection[str] = ()
) -> float:
    """The most that a forward pass without gradients holds, in its MLP or in its attention. seen_tokens: keys that the
    mask of a step over a cache spans, for each query of each head that shares a key. adapted: linear layers that add
    what an adapter puts out."""
    D, F, H, G, d = net.hidden, net.inner, net.heads, net.key_heads, net.head_size
    mlp = net.experts_per_token * (D + 4 * F) if net.experts else (3 + ("up_proj" in adapted)) * F
    attention = (5 + ("q_proj" in adapted)) * H * d + 2 * G * d
    mask = (width + 1) * H / G * seen_tokens
    return tokens * (width * (2 * D + max(D + mlp, attention)) + 2 * FP32 * d + mask)
