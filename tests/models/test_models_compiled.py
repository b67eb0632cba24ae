"""Compiled decoder layers and choice: few versions serve all layers and sizes, and attention stays outside."""

import functools
import logging
from dataclasses import replace

import pytest
import torch
from helpers import tiny_model
from torch._dynamo.utils import counters
from transformers import AttentionInterface

from models import DiffusionLM, compiled
from models.attention import ATTENTION_NAME, Masked, _attention, block_causal_mask
from models.checkpoint import random_network
from models.fused import compile_layers
from sample import SamplingConfig
from sample.targets import Coordinates
from sample.unmask import propose


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    AttentionInterface.register(ATTENTION_NAME, _attention)
    torch._dynamo.reset()


def deep_model(layers):
    small = tiny_model("sdar")
    spec = replace(small.spec, raw=small.spec.raw | {"num_hidden_layers": layers})
    return DiffusionLM(random_network(spec, torch.float32, seed=0), spec, {}, None).eval()


def hidden(model, batch, length):
    ids = torch.arange(batch * length).reshape(batch, length) % 60 + 3
    positions = torch.arange(length).expand(batch, length)
    with torch.inference_mode():
        return model.hidden(ids, positions, Masked(block_causal_mask(length, 4)))


@pytest.mark.slow
def test_twelve_layers_at_four_sizes_are_at_most_eight_graphs():
    plain, fused = deep_model(12), deep_model(12)
    assert compile_layers(fused, backend="eager") and compile_layers(fused)
    for batch, length in ((2, 4), (3, 4), (5, 4), (4, 4)):  # a step runs spans of a block
        assert torch.equal(hidden(fused, batch, length), hidden(plain, batch, length))
    assert 2 <= counters["stats"]["unique_graphs"] <= 8


def test_mixtures_of_experts_are_left_as_they_are(monkeypatch):
    model = tiny_model("sdar")
    monkeypatch.setattr(model.hf_config, "num_experts", 4, raising=False)
    assert not compile_layers(model)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.slow
def test_the_choice_is_one_graph_for_any_number_of_positions(monkeypatch):
    rules = SamplingConfig(temperature=0.8, top_p=0.9, target="neg_entropy").rules()
    monkeypatch.setattr(compiled, "suits", lambda device: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    fused = compiled.compiled_on(torch.device("cpu"), propose)
    for N in (3, 8, 5):
        logits = torch.randn(N, 300, generator=torch.Generator().manual_seed(N))
        where = Coordinates(torch.arange(N) * 7919, torch.arange(N), torch.zeros(N, dtype=torch.long))
        got, want = (f(logits.clone(), where, rules, 7, 290) for f in (fused, propose))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True) if a is not None)
    assert counters["stats"]["unique_graphs"] == 1


def test_only_a_gpu_compiles_and_says_once_why_not(monkeypatch, caplog):
    compiled.suits.cache_clear()
    monkeypatch.setattr("models.compiled.shutil.which", lambda name: None)
    monkeypatch.setattr("models.compiled.importlib.util.find_spec", lambda name: object())
    with caplog.at_level(logging.WARNING):
        assert compiled.compiled_on(torch.device("cpu"), propose) is propose
        for _ in range(2):
            assert compiled.compiled_on(torch.device("cuda"), propose) is propose
    (said,) = caplog.messages
    assert "no C compiler" in said
    compiled.suits.cache_clear()


def failing(graph, inputs):
    raise AssertionError("torch._inductor.tiling_utils")


class Failing:
    """Compiles so many graphs and no more."""

    def __init__(self, graphs):
        self.left = graphs

    def __call__(self, graph, inputs):
        if self.left:
            self.left -= 1
            return graph.forward
        return failing(graph, inputs)


def breaking(candidates):
    torch._dynamo.graph_break()
    return candidates.confidence


@pytest.mark.parametrize(("target", "graphs"), [("confidence", 0), (breaking, 0), (breaking, 1)])
def test_a_choice_that_torch_fails_to_compile_runs_as_it_is_and_says_so_once(monkeypatch, caplog, target, graphs):
    """torch 2.11 fails on the choice of some shapes, and a user's target may leave the graph after logits were
    overwritten."""
    monkeypatch.setattr(compiled, "suits", lambda device: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=Failing(graphs)))
    choose = compiled.compiled_on(torch.device("cpu"), propose)
    rules = SamplingConfig(temperature=1.0).rules()
    if callable(target):
        rules = replace(rules, target=replace(rules.target, score=target))
    where = Coordinates(*torch.arange(9).reshape(3, 3))
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got, want = (f(logits.clone(), where, rules, 7, 50) for f in (choose, propose))
            assert torch.equal(got.token, want.token) and torch.equal(got.logp, want.logp)
    (said,) = caplog.messages
    assert "propose runs operation by operation" in said


def test_another_vocabulary_is_another_version_and_no_open_length(monkeypatch):
    """torch 2.11 has no kernel for the choice where the vocabulary's size is left open."""
    widths = []

    def backend(graph, inputs):
        traced = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
        widths.append([size for value in traced if torch.is_tensor(value) for size in value.shape[1:]])
        return graph.forward

    monkeypatch.setattr(compiled, "suits", lambda device: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    choose, rules = compiled.compiled_on(torch.device("cpu"), propose), SamplingConfig(temperature=1.0).rules()
    for N, V in ((4, 64), (8, 64), (4, 80), (8, 80)):
        choose(torch.randn(N, V), Coordinates(*torch.arange(3 * N).reshape(3, N)), rules, 7, 50)
    assert widths == [[64], [80]] and all(isinstance(size, int) for of_graph in widths for size in of_graph)


def test_a_compiler_that_the_user_has_switched_off_is_not_used_and_not_warned_of(caplog):
    compiled.suits.cache_clear()
    with torch._dynamo.config.patch(disable=True):
        assert not compiled.suits(torch.device("cuda")) and not caplog.messages
        assert "TORCH_COMPILE_DISABLE" in compiled.obstacle(torch.device("cuda"))
    compiled.suits.cache_clear()
