"""One denoising step of every slot: propose, choose, commit, advance. Nothing is read on the host.

Shapes: n slots at work, b positions of a block, N positions that may be decided, V vocabulary, D hidden size.
"""

import torch
from torch import Tensor

from models import DiffusionLM
from models.compiled import compiled_on
from models.spec import delete_insert_ids
from sample.config import SamplingConfig
from sample.drawing import Drawer
from sample.moves import Moves
from sample.revision import Revision
from sample.slots import StepState
from sample.spans import Bounds, CachePolicy, first_true
from sample.strategies import Proposal
from sample.targets import Coordinates
from sample.unmask import SCHEDULES, Rules, cosine_schedule, propose


class Denoiser:
    """Steps under one config (after `for_model`). Works on the slots' state and a cache policy; keeps nothing of them.

    schedule: positions that a step decides, [blocks, steps]; the last row and column hold for all further ones. Under
    full attention a row follows for each length that the last block of a shorter response may have. Where steps revise,
    a block that needs more steps than it has goes on with the share of its last one.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig):
        assert config.block_size is not None
        self.model, self.config, self.decoding = model, config, model.decoding
        self.b, self.offset_b = config.block_size, torch.arange(config.block_size, device=model.device)
        self.rules = config.rules(self.decoding.threshold_passes)
        self.propose = compiled_on(model.device, propose)
        self.revision = self._revision() if config.revises else None
        self.drawer = Drawer(model, config, self.rules) if config.output == "image" else None
        plans, last = _plans(model, config, self.rules)
        self.blocks = len(plans)
        plans += last
        longest = max(map(len, plans))
        table = [plan + [plan[-1] if config.revises else 1] * (longest - len(plan)) for plan in plans]
        self.schedule = torch.tensor(table, device=model.device).clamp_min(1)
        stop_ids = config.stop_ids if config.early_stop else ()
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.long, device=model.device)

    def step(self, cache: CachePolicy, state: StepState, bounds: Bounds) -> None:
        """One step of every slot, and the advance to the next block where one is complete."""
        hidden_nbD, active_n = cache.hidden(state, bounds)
        position_nb = state.start[:, None] + self.offset_b
        ids_nb = state.ids.gather(1, position_nb)
        open_nb = self._open(state, ids_nb, position_nb) & active_n[:, None]
        masked_nb = open_nb
        if self.decoding.opens_with_first:
            masked_nb = open_nb & ((state.block_step > 0)[:, None] | (self.offset_b == 0))
        if self.revision is None:
            proposal = self._proposal(hidden_nbD, state, position_nb, masked_nb, bounds)
        else:
            written_nb = self.revision.written(state, ids_nb, position_nb, active_n)
            proposal = self._proposal(hidden_nbD, state, position_nb, masked_nb | written_nb, bounds)
        k_n = self._share(state)
        if self.revision is not None:
            k_n = self.revision.share(state, k_n, masked_nb, position_nb)
        chosen_nb = self.rules.strategy(proposal, masked_nb, k_n, self.config)

        state.step += active_n
        state.block_step += active_n
        leaves_n = active_n
        if self.revision is None:
            ids_nb = torch.where(chosen_nb, proposal.token, ids_nb)
            state.commit(chosen_nb, position_nb, ids_nb, proposal.logp)
        else:
            ids_nb, changed_n, spent_n = self.revision.revise(
                state, proposal, chosen_nb, written_nb, position_nb, open_nb, active_n
            )
            full_n = active_n & ~self._open(state, ids_nb, position_nb).any(1)
            leaves_n = full_n & (spent_n | ~(open_nb.any(1) | changed_n))
        self._advance(state, leaves_n, ids_nb, position_nb)

    def _revision(self) -> Revision:
        config, mask_id, steps = self.config, self.model.mask_id, self.config.steps_per_block
        if not config.moves:
            return Revision(config, mask_id)
        per_block = torch.tensor([steps] if isinstance(steps, int) else list(steps or ()), device=self.model.device)
        return Moves(config, mask_id, per_block, self.b)

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """What stands right of the response from the start."""
        return self.drawer.drawing.suffix_ids if self.drawer is not None else ()

    def first_masks(self, undecided: int) -> int:
        """Positions that the first step of a block may decide, of those undecided; where steps revise, that any may."""
        return min(undecided, 1) if self.decoding.opens_with_first and self.revision is None else undecided

    def _open(self, state: StepState, ids_nb: Tensor, position_nb: Tensor) -> Tensor:
        """Positions [n, b] that must be decided before the block is left."""
        masked_nb = ids_nb == self.model.mask_id
        if self.decoding.stop_narrows and len(self.stop_ids):
            masked_nb &= self.offset_b < self._first_stop(state, ids_nb, position_nb)[:, None]
        return masked_nb

    def _proposal(
        self, hidden_nbD: Tensor, state: StepState, position_nb: Tensor, wanted_nb: Tensor, bounds: Bounds
    ) -> Proposal:
        """Candidates of the wanted positions, [n, b]. The head runs on `bounds.masks` positions, the wanted ones
        first."""
        n, b = wanted_nb.shape
        row_N = first_true(wanted_nb.flatten(), bounds.masks)
        slot_N = row_N // b
        coordinates = Coordinates(state.key[slot_N], position_nb.flatten()[row_N], state.step[slot_N])
        if self.drawer is not None:
            return self.drawer.propose(hidden_nbD, row_N, coordinates, state).spread(row_N, n, b)
        logits_NV = self.model.lm_head(hidden_nbD.flatten(0, 1)[row_N], fp32=True)
        drawings = None if bounds.mix is None else state.drawings(slot_N, bounds.mix)
        vocabulary = (self.model.mask_id, self.model.text_vocab_size)
        never = () if self.config.moves else delete_insert_ids(self.model.spec) or ()
        standing_N = None
        if self.config.remask_threshold is not None:
            standing_N = state.ids.gather(1, position_nb).flatten()[row_N].clamp_min(0)
        proposal = self.propose(logits_NV, coordinates, self.rules, *vocabulary, drawings, standing_N, never)
        return proposal.spread(row_N, n, b)

    def _share(self, state: StepState) -> Tensor:
        """k [n]: the positions that the schedule gives each slot's step."""
        row_n = state.block_index.clamp_max(self.blocks - 1)
        if len(self.schedule) > self.blocks:
            left_n = state.end - state.start
            ends_apart = (left_n < self.b) & (state.limit - state.prompt != self.config.max_new_tokens)
            row_n = torch.where(ends_apart, self.blocks - 1 + left_n, row_n)
        return self.schedule[row_n, state.block_step.clamp_max(self.schedule.shape[1] - 1)]

    def _advance(self, state: StepState, leaves_n: Tensor, ids_nb: Tensor, position_nb: Tensor) -> None:
        """Ends slots whose response is complete, moves those with a decided block on. leaves_n: those that may."""
        b = self.b
        is_mask = ids_nb == self.model.mask_id
        undecided = torch.where(is_mask, self.offset_b, b).amin(1)
        ended = state.start + undecided >= state.limit
        if len(self.stop_ids):
            ended |= self._first_stop(state, ids_nb, position_nb) < undecided
        if self.decoding.pads_end and self.config.early_stop and self.config.pad_id is not None:
            only_pads = ((ids_nb == self.config.pad_id) | (position_nb >= state.end[:, None])).all(1)
            self._fill_pads(state, leaves_n & only_pads & ~ended)
            ended |= only_pads
        state.live &= ~(leaves_n & ended)
        advance = leaves_n & state.live & (undecided == b)
        state.start += b * advance
        state.block_index += advance
        state.block_step *= ~advance
        state.needs_commit |= advance
        left_n = state.masks
        if self.revision is None:
            left_n = is_mask.sum(1)
        else:
            state.post_steps *= ~advance
            state.remasked *= ~advance
        state.masks.copy_(torch.where(advance, self.first_masks(b), left_n))

    def _first_stop(self, state: StepState, ids_nb: Tensor, position_nb: Tensor) -> Tensor:
        """Place [n] in the block of the first stop id of the response, b where there is none."""
        is_stop = (ids_nb[..., None] == self.stop_ids).any(-1)
        is_stop &= (position_nb >= state.prompt[:, None]) & (position_nb < state.limit[:, None])
        return torch.where(is_stop, self.offset_b, self.b).amin(1)

    def _fill_pads(self, state: StepState, filled_n: Tensor) -> None:
        """Pads all positions right of the current block, as one more step that costs no forward."""
        assert self.config.pad_id is not None
        position = torch.arange(state.ids.shape[1], device=filled_n.device)
        rest = (position >= (state.start + self.b)[:, None]) & (position < state.end[:, None]) & filled_n[:, None]
        state.ids.masked_fill_(rest, self.config.pad_id)
        state.step_map.copy_(torch.where(rest, (state.step + 1).int()[:, None], state.step_map))


def _plans(model: DiffusionLM, config: SamplingConfig, rules: Rules) -> tuple[list[list[int]], list[list[int]]]:
    """How many positions each step decides, a list a block; the last one holds for all further blocks. Then those of a
    last block of 1, 2, ... positions, where a response may have one that is shorter than the others."""
    assert config.block_size is not None and config.steps_per_block is not None
    if model.decoding.dynamic_at_least_one and rules.strategy.by_threshold:
        return [[1]], []
    steps = config.steps_per_block
    if config.output == "image":
        assert isinstance(steps, int)
        return [cosine_schedule(config.block_size, steps)], []
    per_block = [steps] if isinstance(steps, int) else list(steps)
    sizes = [config.block_size] * len(per_block)
    shorter = range(1, config.block_size if model.attention == "full" else 1)
    if model.attention == "full":
        whole, rest = divmod(config.max_new_tokens, config.block_size)
        sizes = [config.block_size] * whole + [rest] * (rest > 0)
        per_block += per_block[-1:] * (len(sizes) - len(per_block))
    make = SCHEDULES[model.decoding.schedule]
    plans = [make(size, steps) for size, steps in zip(sizes, per_block, strict=False)]
    return plans, [make(size, per_block[-1]) for size in shorter]
