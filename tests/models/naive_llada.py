"""LLaDA's forward written down from its flags, weight by weight under the checkpoint's own names, in float64."""

import torch
import torch.nn.functional as F

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


class NaiveLLaDA:
    """weights: the checkpoint's tensors; flags: its config.json.."""

    def __init__(self, flags, weights):
        self.flags = flags
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.used = set()

    def get(self, name):
        self.used.add(name)
        return self.weights[f"model.transformer.{name}"]

    def linear(self, x, name):
        bias = f"{name}.bias"
        return F.linear(x, self.get(f"{name}.weight"), self.get(bias) if self.has(bias) else None)

    def has(self, name):
        return f"model.transformer.{name}" in self.weights

    def norm(self, x, name):
        unit = x * (x.pow(2).mean(-1, keepdim=True) + self.flags["rms_norm_eps"]).rsqrt()
        weight = self.get(f"{name}.weight")
        return unit * (1 + weight if self.flags["layer_norm_type"] == "gemma_rms" else weight)

    def rotate(self, x):
        L, d = x.shape[-2:]
        inverse = self.flags["rope_theta"] ** (-torch.arange(0, d, 2).double() / d)
        angle = torch.arange(L).double()[:, None] * inverse
        cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def attend(self, q, k, v):
        heads = self.flags["n_heads"]
        kv_heads = self.flags["n_kv_heads"] or (1 if self.flags["multi_query_attention"] else heads)
        q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
        k, v = (x.unflatten(-1, (kv_heads, -1)).transpose(1, 2).repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        scores = self.rotate(q) @ self.rotate(k).transpose(-1, -2) / q.shape[-1] ** 0.5
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)

    def block(self, x, name):
        d = self.flags["d_model"]
        normed = self.norm(x, f"{name}.attn_norm")
        if self.flags["block_type"] == "sequential":
            fused = self.linear(normed, f"{name}.att_proj")
            q, k, v = fused.split([d, (fused.shape[-1] - d) // 2, (fused.shape[-1] - d) // 2], -1)
        else:
            q, k, v = (self.linear(normed, f"{name}.{part}_proj") for part in "qkv")
        x = x + self.linear(self.attend(q, k, v), f"{name}.attn_out")
        normed = self.norm(x, f"{name}.ff_norm")
        if self.flags["block_type"] == "sequential":
            up, gate = self.linear(normed, f"{name}.ff_proj").chunk(2, -1)
            inner = F.silu(gate) * up
        else:
            gate = ACTIVATIONS[self.flags["activation_type"]](self.linear(normed, f"{name}.ff_proj"))
            inner = gate * self.linear(normed, f"{name}.up_proj")
        return x + self.linear(inner, f"{name}.ff_out")

    def logits(self, ids):
        flags = self.flags
        root = flags["d_model"] ** 0.5
        x = self.get("wte.weight")[ids] * (root if flags["input_emb_norm"] else 1)
        for i in range(flags["n_layers"]):
            group = flags["block_group_size"]
            x = self.block(x, f"blocks.{i}" if group == 1 else f"block_groups.{i // group}.{i % group}")
        x = self.norm(x, "ln_f")
        logits = x @ self.get("wte.weight").T if flags["weight_tying"] else self.linear(x, "ff_out")
        assert {f"model.transformer.{name}" for name in self.used} == set(self.weights), "a weight was not used"
        return logits / root if flags["scale_logits"] else logits


def random_weights(flags, seed=0):
    """A checkpoint's tensors with every bias and norm away from its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    d, head = flags["d_model"], flags["d_model"] // flags["n_heads"]
    kv = head * (flags["n_kv_heads"] or (1 if flags["multi_query_attention"] else flags["n_heads"]))
    hidden = flags["mlp_hidden_size"] or flags["mlp_ratio"] * d
    rows = flags["embedding_size"] or flags["vocab_size"]
    qkv_bias, bias = flags["include_bias"] or flags["include_qkv_bias"], flags["include_bias"]
    weights = {}

    def add(name, out, fan_in, has_bias):
        weights[f"{name}.weight"] = torch.randn(out, fan_in, generator=generator) * 1.2 / fan_in**0.5
        if has_bias:
            weights[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.3

    def add_norm(name):
        centre = 0.0 if flags["layer_norm_type"] == "gemma_rms" else 1.0
        weights[f"{name}.weight"] = centre + 0.2 * torch.randn(d, generator=generator)

    weights["wte.weight"] = torch.randn(rows, d, generator=generator) * 0.5
    for i in range(flags["n_layers"]):
        group = flags["block_group_size"]
        name = f"blocks.{i}" if group == 1 else f"block_groups.{i // group}.{i % group}"
        add_norm(f"{name}.attn_norm")
        add_norm(f"{name}.ff_norm")
        if flags["block_type"] == "sequential":
            add(f"{name}.att_proj", d + 2 * kv, d, qkv_bias)
            add(f"{name}.ff_proj", hidden, d, bias)
            add(f"{name}.ff_out", d, hidden // 2, bias)
        else:
            for part, out in (("q", d), ("k", kv), ("v", kv)):
                add(f"{name}.{part}_proj", out, d, qkv_bias)
            add(f"{name}.ff_proj", hidden, d, bias)
            add(f"{name}.up_proj", hidden, d, bias)
            add(f"{name}.ff_out", d, hidden, bias)
        add(f"{name}.attn_out", d, d, bias)
    add_norm("ln_f")
    if not flags["weight_tying"]:
        add("ff_out", rows, d, bias)
    return {f"model.transformer.{name}": weight for name, weight in weights.items()}
