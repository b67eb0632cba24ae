"""How much of a GPU's arithmetic the updates use."""

import re
from collections.abc import Mapping

import torch

from models import DiffusionLM
from models.checkpoint import empty_network
from train.memory.sizes import Network

PEAK_TFLOPS = {
    **{
        "H100 PCIe": 756.0,
        "H100 NVL": 835.0,
        "H100": 989.0,
        "H200": 989.0,
        "H800": 989.0,
        "GH200": 989.0,
        "H20": 148.0,
    },
    **{"B200": 2250.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L4": 121.0, "A40": 149.7, "A6000": 154.8},
    **{"RTX 4090": 165.2, "RTX 3090": 71.0, "MI300X": 1307.4},
}
"""Dense bf16, of the makers' data sheets, by words of torch's name of a GPU; the longest that fits counts."""


def peak_tflops(device_name: str) -> float | None:
    """None for a GPU that is not in the table."""
    fitting = [words for words in PEAK_TFLOPS if re.search(rf"(?<![A-Za-z0-9]){words}(?![A-Za-z0-9])", device_name)]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def flops_of_update(net: Network, packed_tokens: float, trained_tokens: float, frozen: bool) -> float:
    """Of forward and backward passes, without attention's own and without what is computed again: two a weight and
    packed token forward, four backward (two where weights are frozen beside adapters); the head's at trained tokens
    alone. Of a mixture the experts at work count."""
    active = net.body - net.expert_parameters
    if net.experts:
        active += net.expert_parameters * net.experts_per_token // net.experts
    passes = 4.0 if frozen else 6.0
    return passes * (active * packed_tokens + net.vocab * net.hidden * trained_tokens)


class Utilisation:
    """Metrics of a run's updates on a GPU in bf16 whose peak is known; none elsewhere, nor of canvases, whose passes
    differ."""

    def __init__(self, model: DiffusionLM, processes: int):
        on_gpu = model.device.type == "cuda" and model.dtype == torch.bfloat16
        counted = on_gpu and model.spec.family.noise == "mask"
        self.peak = peak_tflops(torch.cuda.get_device_name(model.device)) if counted else None
        network = empty_network(model.spec.family, model.spec.raw)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.net = Network.of(network, network.config.get_text_config())
        self.frozen = trained < 0.5 * sum(weight.numel() for weight in model.parameters())
        self.processes = processes

    def metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """mfu: share of the peak that the updates reached, from their tokens and their seconds."""
        speed = metrics.get("update_tokens_per_second")
        if self.peak is None or not speed or not metrics.get("packed_tokens"):
            return {}
        trained = speed * metrics["trained_tokens"] / metrics["packed_tokens"]
        flops_per_second = flops_of_update(self.net, speed, trained, self.frozen)
        return {"mfu": flops_per_second / (self.peak * 1e12 * self.processes)}
