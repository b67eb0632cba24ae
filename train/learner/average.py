"""The running mean of the weights under training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from models import DiffusionLM


class Average:
    """Exponential moving average of a model's trained weights, in fp32 (Polyak and Juditsky's averaging, forgetting as
    in arXiv:2006.11239):

        average <- decay average + (1 - decay) weights

    after each update that was taken; it begins as the weights. The model's parameters must be its fp32 weights wherever
    this is made or updated (`Engine.whole_on_main`). For the one process that saves.
    """

    def __init__(self, model: DiffusionLM, decay: float):
        self.model, self.decay = model, decay
        self.mean = {name: weight.detach().clone() for name, weight in self._trained()}

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        for name, weight in self._trained():
            self.mean[name].lerp_(weight, 1.0 - self.decay)

    def save(self, path: Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes the model with the averaged weights, as `DiffusionLM.save`."""
        with self._in_place():
            self.model.save(path, dtype=dtype)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """While the block runs, the model's parameters are the averages."""
        weights = {name: weight.data for name, weight in self._trained()}
        try:
            for name, weight in self._trained():
                weight.data = self.mean[name]
            yield
        finally:
            for name, weight in self._trained():
                weight.data = weights[name]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: mean.cpu() for name, mean in self.mean.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, mean in self.mean.items():
            mean.copy_(state[name])
