"""How much of a GPU the updates use."""

import pytest

from train.memory.sizes import Network
from train.utilisation import Utilisation, flops_of_update, peak_tflops

DENSE = Network(
    parameters=0, body=1000, largest=0, layers=2, hidden=8, inner=0, heads=1, key_heads=1, head_size=8, vocab=50,
    head_norms=False, tied=False,
)  # fmt: skip


def test_six_operations_a_weight_and_token_and_the_head_at_trained_tokens():
    assert flops_of_update(DENSE, 10, 3, False) == 6 * (1000 * 10 + 50 * 8 * 3)
    assert flops_of_update(DENSE, 10, 3, True) == 4 * (1000 * 10 + 50 * 8 * 3)


def test_of_a_mixture_the_experts_at_work_count():
    mixture = Network(**{**vars(DENSE), "experts": 8, "experts_per_token": 2, "expert_parameters": 800})
    assert flops_of_update(mixture, 1, 0, False) == 6 * (200 + 200)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.0),
        ("Quadro P1000", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A40-48Q", 149.7),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA GH200 480GB", 989.0),
    ],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(name, peak):
    assert peak_tflops(name) == peak


def test_the_share_of_the_peak_is_of_all_processes():
    utilisation = Utilisation.__new__(Utilisation)
    utilisation.peak, utilisation.net, utilisation.frozen, utilisation.processes = 1.0, DENSE, False, 2
    given = {"update_tokens_per_second": 1e8, "packed_tokens": 10.0, "trained_tokens": 0.0}
    assert utilisation.metrics(given) == {"mfu": pytest.approx(6 * 1000 * 1e8 / 2e12)}
    assert utilisation.metrics({"packed_tokens": 0.0}) == {}
