"""Where keys and values lie: one tensor for all layers, whole blocks of tokens, copies in one go."""

from collections import Counter

import pytest
import torch
from helpers import random_prompts, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from sample import Sampler, SamplingConfig
from sample.slots import CAPACITY_MULTIPLE, SlotKV


class Operations(TorchDispatchMode):
    """Counts aten operations that are no views."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


@pytest.fixture(scope="module")
def config():
    return tiny_model("sdar").hf_config


@pytest.fixture
def kv(config):
    kv = SlotKV(config, 4, 30, torch.float32, torch.device("cpu"))
    kv.pool.copy_(torch.randn(kv.pool.shape))
    return kv


def test_all_layers_lie_in_one_tensor_of_whole_blocks(kv, config):
    layers = config.num_hidden_layers
    assert kv.pool.shape[:4] == (layers, 2, 5, CAPACITY_MULTIPLE) and kv.capacity_tokens == CAPACITY_MULTIPLE
    for layer in range(layers):
        for place, cache in enumerate((kv.keys, kv.values)):
            assert cache[layer].data_ptr() == kv.pool[layer, place].data_ptr()
    assert SlotKV.bytes(config, 4, 30, torch.float32) == kv.pool.numel() * 4


@pytest.mark.parametrize("length", [5, None])
def test_slots_are_copied_by_one_gather_and_one_write(kv, length):
    want = kv.pool.clone()
    want[:, :, [3, 1], :length] = want[:, :, [0, 2], :length]
    with Operations() as operations:
        kv.copy(torch.tensor([0, 2]), torch.tensor([3, 1]), length)
    assert operations.counts == {"index_select": 1, "index_copy_": 1}
    assert torch.equal(kv.pool, want)


def test_no_step_on_a_cpu_sees_more_than_the_longest_sequence_of_the_call(monkeypatch):
    model, seen = tiny_model("sdar"), set()
    view = SlotKV.view

    def watched(kv, layer, n, length_tokens):
        seen.add(length_tokens)
        return view(kv, layer, n, length_tokens)

    monkeypatch.setattr(SlotKV, "view", watched)
    sampler = Sampler(model, SamplingConfig(max_new_tokens=12, deterministic=True, max_slots=2))
    sampler.generate(random_prompts([9, 20]))
    assert seen == {20 + 12 + 3}


def test_masked_attention_on_cuda_is_never_given_to_cudnn():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
