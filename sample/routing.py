"""The experts that a mixture's routers chose in sampling, for training that routes each token as it was routed then.

Rounding may send a token to other experts in training than in sampling, which no log-probability survives (rollout
routing replay, arXiv:2510.11370). Shapes: b positions of a block, M layers with experts, k experts of a token, n slots,
C commit spans, S = n + C spans.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import DiffusionLM
from models.experts import routers
from sample.config import SamplingConfig
from sample.experts import Experts, Routing
from sample.slots import SlotKV, StepState
from sample.spans import Bounds, ExactBlockCache


class RoutingCache(ExactBlockCache):
    """The exact cache, which keeps what the routers choose. The host reads each step, and prompts are run one by one:
    slower, and never captured."""

    fixed_shapes = False

    def __init__(self, model: DiffusionLM, config: SamplingConfig, kv: SlotKV):
        super().__init__(model, config, kv)
        self.chosen: dict[str, Tensor] = {}
        self.prompts: dict[tuple[int, ...], Experts] = {}
        self.committed: dict[int, dict[int, Experts]] = {}
        self.denoised: dict[int, dict[int, Experts]] = {}

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        for prompt, slot in zip(prompts, slots, strict=True):
            whole = tuple(prompt[: self.first_block(len(prompt))])
            if whole:
                self._recorded(partial(super().prefill, [prompt], [slot]))
                self.prompts[whole] = self._taken()[: len(whole)]

    def _forward(self, state: StepState, slot_S: Tensor, writes_S: Tensor, start_S: Tensor, view_tokens: int) -> Tensor:
        run = partial(super()._forward, state, slot_S, writes_S, start_S, view_tokens)
        hidden_SbD: Tensor = self._recorded(run)
        experts = self._taken()
        experts_S = experts.reshape(len(slot_S), self.block_size, *experts.shape[1:])
        n, scratch = len(state.start), self.kv.slots
        numbers = torch.stack([slot_S, start_S, writes_S, state.step[slot_S]]).tolist()
        live = state.live.tolist()
        for place, (slot, start, writes, step) in enumerate(zip(*numbers, strict=True)):
            if place >= n and writes != scratch:
                self.committed[slot][start] = experts_S[place].copy()
            elif place < n and live[place]:
                if step == 0:  # another response than the slot had before
                    self.committed[slot], self.denoised[slot] = {}, {}
                self.denoised[slot][step] = experts_S[place].copy()  # once more where the slot waits for its commit
        return hidden_SbD

    def hidden(self, state: StepState, bounds: Bounds) -> tuple[Tensor, Tensor]:
        assert self.fused, "commits that run apart look like denoising spans"
        return super().hidden(state, bounds)

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """What was kept of slots source[i] is that of target[i] now (disjoint)."""
        for kept in (self.committed, self.denoised):
            for old, new in zip(source, target, strict=True):
                if old in kept:
                    kept[new] = kept.pop(old)

    def take(self, slot: int, prompt_ids: Sequence[int], num_steps: int) -> Routing:
        """Of the response that has ended in a slot; it is forgotten."""
        prompt = self.prompts.get(tuple(prompt_ids[: self.first_block(len(prompt_ids))]))
        blocks, steps = self.committed.pop(slot), self.denoised.pop(slot)
        clean = [*([] if prompt is None else [prompt]), *(blocks[start] for start in sorted(blocks))]
        noisy = np.stack([steps[step] for step in range(num_steps)])
        return Routing(np.concatenate(clean) if clean else noisy[0][:0], noisy)

    def _recorded(self, run: Callable[[], Any]) -> Any:
        hooks = [r.register_forward_hook(self._keeper(name)) for name, r in routers(self.model).items()]
        try:
            return run()
        finally:
            for hook in hooks:
                hook.remove()

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, tuple[Tensor, ...]], None]:
        def keep(router: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
            self.chosen[name] = output[2]

        return keep

    def _taken(self) -> Experts:
        """What was chosen in the last forward, [T, M, k]."""
        experts_TMk = torch.stack([self.chosen[name] for name in routers(self.model)], 1)
        self.chosen = {}
        return experts_TMk.to(torch.int16).cpu().numpy()
