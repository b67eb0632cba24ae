"""What one step costs beside the model: no read by the host, and a bounded number of operations for any batch."""

from contextlib import contextmanager

import pytest
import torch
from helpers import random_prompts, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from sample import Sampler, SamplingConfig
from sample.denoiser import Denoiser

HOST_READS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select")
HOST_METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")


class Ops(TorchDispatchMode):
    """Names of the aten operations inside and outside the model's body and head."""

    def __init__(self, model):
        super().__init__()
        self.inside, self.names = 0, {True: [], False: []}
        self.hooks = []
        for module in (model.model, model.lm_head):
            self.hooks.append(module.register_forward_pre_hook(lambda *_: self.enter(1)))
            self.hooks.append(module.register_forward_hook(lambda *_: self.enter(-1)))

    def enter(self, by):
        self.inside += by

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[self.inside > 0].append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_is_blind(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a step reads a tensor on the host")

    with monkeypatch.context() as patch:
        for name in HOST_METHODS:
            patch.setattr(torch.Tensor, name, refuse)
        yield


def steps_of(sampler, prompts, monkeypatch, watch=None):
    """Runs `generate`, every step under a fresh Ops; returns one Ops a step."""
    seen, plain = [], Denoiser.step

    def step(denoiser, *args):
        with host_is_blind(monkeypatch), Ops(sampler.model) as ops:
            plain(denoiser, *args)
        for hook in ops.hooks:
            hook.remove()
        seen.append(ops)

    monkeypatch.setattr(Denoiser, "step", step)
    sampler.generate(prompts)
    monkeypatch.setattr(Denoiser, "step", plain)
    return seen


def every_other(proposal, masked_nb, k_n, choices):
    """A user's strategy: every other masked position, from the left."""
    return masked_nb & (masked_nb.cumsum(-1) % 2 == 1)


def surprise(candidates):
    """A user's target."""
    return -candidates.logp


VARIANTS = [
    {},
    {"strategy": every_other, "target": surprise},
    {"strategy": "low_confidence_static"},
    {"strategy": "sequential", "target": "random"},
    {"strategy": "entropy_bounded", "target": "margin_confidence"},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "confidence": "tempered", "target": "neg_entropy"},
    {"temperature": 1.0, "pad_target_penalty": 2.0},
    {"fuse_commit": False},
    {"deterministic": True},
    {"cache": "none"},
    {"edit_threshold": 0.3, "remask_threshold": 0.2},
]


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda v: "-".join(getattr(x, "__name__", str(x)) for x in v.values()) or "default"
)
@pytest.mark.parametrize("polls", [1, 4])
def test_a_step_reads_nothing_to_the_host(sdar, monkeypatch, variant, polls):
    sampler = Sampler(sdar, SamplingConfig(max_new_tokens=10, **variant))
    sampler.steps_between_polls = polls
    steps = steps_of(sampler, random_prompts([5, 9, 4]), monkeypatch)
    assert len(steps) >= 3
    for ops in steps:
        assert not set(HOST_READS) & set(ops.names[True] + ops.names[False])


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("dream", {"cache": "none", "pad_id": 5}),
        ("dream", {"cache": "prefix", "strategy": "low_confidence_static", "alg_temp": 0.5, "temperature": 1.0}),
        ("llada", {"cache": "dual"}),
        ("dream", {"remask_threshold": 0.3}),
        ("mmada", {"cache": "prefix", "further_horizon": 2, "temperature": 1.0, "deterministic": True}),
    ],
)
def test_a_step_of_full_attention_reads_nothing_to_the_host(monkeypatch, family, variant):
    model = tiny_model(family)
    sampler = Sampler(model, SamplingConfig(max_new_tokens=10, block_size=4, **variant))
    steps = steps_of(sampler, random_prompts([5, 9, 4]), monkeypatch)
    assert len(steps) >= 3
    for ops in steps:
        assert not set(HOST_READS) & set(ops.names[True] + ops.names[False])
        assert len(ops.names[False]) <= 300


def test_the_guard_sees_reads(sdar, monkeypatch):
    """The test above can fail: a read in a step is caught both ways."""
    with host_is_blind(monkeypatch), pytest.raises(AssertionError, match="reads a tensor"):
        bool(torch.ones(1))
    with Ops(sdar) as ops:
        torch.ones(3).max().item()
        torch.ones(3).nonzero()
    assert {"_local_scalar_dense", "nonzero"} <= set(ops.names[False])


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "bound"), [({}, 160), ({"temperature": 1.0}, 220)])
def test_operations_outside_the_model_are_bounded_whatever_the_batch(sdar, monkeypatch, variant, bound):
    counts = set()
    for prompts in (random_prompts([6]), random_prompts([5, 9, 4, 12, 7, 8, 3] * 3)):
        sampler = Sampler(sdar, SamplingConfig(max_new_tokens=12, max_slots=32, stop_ids=[3, 4, 5], **variant))
        steps = steps_of(sampler, prompts, monkeypatch)
        counts.add(max(len(ops.names[False]) for ops in steps))
    assert len(counts) == 1 and counts.pop() <= bound
