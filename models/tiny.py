"""Random models of every family in their checkpoints' layouts, small enough for one core: for tests, benchmarks and
examples."""

import copy
import functools
import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import kept_buffers
from models.load import load_model
from models.model import DiffusionLM

_QWEN = {
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "mask_token_id": 1,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_sliding_window": False,
    "vocab_size": 64,
}
TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "sdar": _QWEN
    | {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "attention_bias": False,
        "block_size": 4,
        "head_dim": 16,
    },
    "dream": _QWEN | {"architectures": ["DreamModel"], "model_type": "Dream", "bos_token_id": 2, "use_mrope": False},
    "llada": {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 32,
        "embedding_dropout": 0.0,
        "embedding_size": 64,
        "eos_token_id": 2,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": 1,
        "max_sequence_length": 512,
        "mlp_hidden_size": 48,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "pad_token_id": 0,
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 10000.0,
        "scale_logits": False,
        "torch_dtype": "float32",
        "vocab_size": 64,
        "weight_tying": False,
    },
}
TINY_CONFIGS["sdar_moe"] = TINY_CONFIGS["sdar"] | {
    "architectures": ["SDARMoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
TINY_CONFIGS["llada2"] = {name: value for name, value in _QWEN.items() if "sliding" not in name} | {
    "architectures": ["LLaDA2MoeModelLM"],
    "block_size": 4,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "model_type": "llada2_moe",
    "moe_intermediate_size": 24,
    "n_group": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "topk_group": 2,
    "use_bias": False,
    "use_qkv_bias": False,
}
TINY_CONFIGS["mmada"] = TINY_CONFIGS["llada"] | {
    "architectures": ["MMadaModelLM"],
    "codebook_size": 16,
    "embedding_size": 80,
    "llm_vocab_size": 64,
    "model_type": "mmada",
    "new_vocab_size": 80,
    "num_new_special_tokens": 0,
    "vocab_size": 80,
}
TINY_CONFIGS["lladav"] = {name: value for name, value in _QWEN.items() if "sliding" not in name} | {
    "architectures": ["LlavaLLaDAModelLM"],
    "attention_bias": False,
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32]],
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "model_type": "llava_llada",
    "num_key_value_heads": 4,
}
TINY_CONFIGS["diffusion_gemma"] = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "canvas_length": 8,
    "image_token_id": 60,
    "boi_token_id": 61,
    "eoi_token_id": 62,
    "model_type": "diffusion_gemma",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "text_config": {
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 16,
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "intermediate_size": 48,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 512,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": 24,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "sliding_window": 12,
        "tie_word_embeddings": True,
        "top_k_experts": 2,
        "use_bidirectional_attention": "vision",
        "vocab_size": 64,
    },
    "vision_config": {
        "head_dim": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "model_type": "gemma4_vision",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "patch_size": 4,
        "position_embedding_size": 16,
    },
}
TINY_FILES = {
    "lladav": {
        "vision_tower_config.json": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 5,
        }
    }
}
"""What folders hold beside config.json."""


def tiny_folder(folder: str | Path, family: str, **config: Any) -> Path:
    """A checkpoint folder without weights; `config` overrides config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": TINY_CONFIGS[family] | config, **TINY_FILES.get(family, {})}.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def tiny_checkpoint(
    folder: str | Path, family: str = "sdar", *, seed: int = 0, sharpness: float = 1.5, **config: Any
) -> Path:
    """A checkpoint folder with random weights; `config` overrides config.json, `sharpness` scales the spread of the
    logits.

    Weights are large enough that every token depends on its whole context and confidences reach from .1 to 1.
    """
    folder = tiny_folder(folder, family, **config)
    model = load_model(folder, random_init_seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                is_head = "lm_head" in name or (model.hf_config.tie_word_embeddings and "embed_tokens" in name)
                scaled = (sharpness if is_head else 1.2) / weight.shape[-1] ** 0.5
                gain = 1.0 if "embed_tokens" in name and not is_head else scaled
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain)
            elif name.endswith("weight"):
                weight.copy_(1.0 + 0.2 * torch.randn(weight.shape, generator=generator))
            else:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        for buffer in kept_buffers(model).values():
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    model.save(folder)
    return folder


def tiny_model(
    family: str = "sdar", *, seed: int = 0, dtype: str = "float32", sharpness: float = 1.5, **config: Any
) -> DiffusionLM:
    """A tiny random model of a family, as loaded from a checkpoint that is written for it and thrown away."""
    return copy.deepcopy(_tiny_model(family, dtype, json.dumps({"seed": seed, "sharpness": sharpness, **config})))


@functools.cache
def _tiny_model(family: str, dtype: str, settings: str) -> DiffusionLM:
    with tempfile.TemporaryDirectory() as folder:
        return load_model(tiny_checkpoint(folder, family, **json.loads(settings)), dtype=dtype)


def random_prompts(
    lengths: Sequence[int], *, vocab_size: int = 64, seed: int = 0, avoid: Collection[int] = (0, 1, 2)
) -> list[list[int]]:
    """Prompts of the given lengths from ids other than pad, mask and eos."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([i for i in range(vocab_size) if i not in avoid])
    return [ids[torch.randint(len(ids), (length,), generator=generator)].tolist() for length in lengths]
