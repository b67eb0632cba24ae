"""Edits that move tokens: DELETE takes a place out of its block, INSERT opens one (LLaDA2.2).

After the report and two independent readers of LLaDA2.2's decoder (https://github.com/inclusionAI/LLaDA2.X); not
checked against the original. A mask is an original one, with which its block began, or a new one, which an edit made.

Shapes: n slots, b positions of a block, K the most steps of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sample.choices import Choices
from sample.events import NO_CHOICE
from sample.revision import Revised, Revision, edits, most_steps
from sample.slots import StepState
from sample.strategies import Proposal

WAYS_OUT = 5
"""Changed positions that take their second token, one after another, where a block comes to what it was before."""


class Moved(NamedTuple):
    """Where the content of each place comes from [n, b]: that of place `source` as it is written, or, where `restored`,
    as it was before; where `made` it is a new mask."""

    source: Tensor
    made: Tensor
    restored: Tensor


def moved(deletes_nb: Tensor, inserts_nb: Tensor) -> Moved:
    """A block read from left to right: DELETE drops its place, INSERT at i puts a new mask before what stood at i; what
    is too long is cut, what is missing is filled with new masks."""
    n, b = deletes_nb.shape
    count_nb = 1 - deletes_nb.long() + inserts_nb.long()
    end_nb = count_nb.cumsum(1)
    place_nb = torch.arange(b, device=end_nb.device).expand(n, b).contiguous()
    source_nb = torch.searchsorted(end_nb, place_nb, right=True)
    missing_nb, source_nb = source_nb == b, source_nb.clamp_max(b - 1)
    opens_nb = inserts_nb.gather(1, source_nb) & ~missing_nb
    first_nb = place_nb == (end_nb - count_nb).gather(1, source_nb)
    return Moved(source_nb, missing_nb | (opens_nb & first_nb), opens_nb & ~first_nb)


def needed(block_step_n: Tensor, steps_n: Tensor, masks_n: Tensor, new_n: Tensor) -> Tensor:
    """Masks that a step fills at least [n]: its share of those with which the block began, the first steps one more,
    and as many as there are new ones; all of them from step steps_n on. masks_n: masks with which the block began."""
    share_n = masks_n // steps_n + (block_step_n < masks_n % steps_n)
    return torch.where(block_step_n < steps_n, share_n + new_n, masks_n + new_n)


class Moves(Revision):
    """What a step does to a block under choices whose edits delete and insert. steps: of a block by its schedule, the
    last number holds for all further blocks."""

    def __init__(self, choices: Choices, mask_id: int, steps: Tensor, block_size: int):
        super().__init__(choices, mask_id)
        assert choices.delete_insert_ids is not None
        self.delete_id, self.insert_id = choices.delete_insert_ids
        self.steps, self.most_steps = steps.clamp_max(block_size), most_steps(choices, block_size)

    def share(self, state: StepState, share_n: Tensor, masked_nb: Tensor, position_nb: Tensor) -> Tensor:
        steps_n = self.steps[state.block_index.clamp_max(len(self.steps) - 1)]
        began_n = (position_nb >= state.prompt[:, None]).sum(1)
        return needed(state.block_step, steps_n, began_n, (masked_nb & state.new_mask).sum(1))

    def revise(
        self,
        state: StepState,
        proposal: Proposal,
        chosen_nb: Tensor,
        written_nb: Tensor,
        position_nb: Tensor,
        masked_nb: Tensor,
        active_n: Tensor,
    ) -> Revised:
        assert proposal.text is not None and proposal.text_logp is not None
        ids_nb = state.ids.gather(1, position_nb)
        last_n = self._last(state, chosen_nb, masked_nb & ~state.new_mask, active_n)
        write_nb = torch.where(last_n[:, None], masked_nb, chosen_nb)
        write_nb = write_nb | edits(proposal, ids_nb, written_nb, self.choices)
        as_text_nb = last_n[:, None] & ((proposal.token == self.delete_id) | (proposal.token == self.insert_id))
        token_nb = torch.where(as_text_nb, proposal.text, proposal.token)
        logp_nb = torch.where(as_text_nb, proposal.text_logp, proposal.logp)
        block_nb, logp_nb = self._out_of_loops(
            state, proposal, ids_nb, torch.where(write_nb, token_nb, ids_nb), logp_nb, active_n & ~last_n
        )
        self._remember(state, block_nb, active_n)
        changed_n = self._move(state, position_nb, ids_nb, block_nb, logp_nb)
        return Revised(state.ids.gather(1, position_nb), changed_n, last_n)

    def _last(self, state: StepState, chosen_nb: Tensor, original_nb: Tensor, active_n: Tensor) -> Tensor:
        """Whether this is the last step of each slot's block [n], which fills all masks and moves nothing: the post
        steps are spent, or there are none and it fills the last original mask, or the block has had its most steps."""
        state.post_steps += active_n & ~original_nb.any(1)  # an original mask that is gone does not come back
        last_n = state.block_step >= self.most_steps
        if self.choices.max_post_steps:
            return (last_n | (state.post_steps >= self.choices.max_post_steps)) & active_n
        return (last_n | ~(original_nb & ~chosen_nb).any(1)) & active_n

    def _out_of_loops(
        self,
        state: StepState,
        proposal: Proposal,
        ids_nb: Tensor,
        block_nb: Tensor,
        logp_nb: Tensor,
        may_n: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The block and its log-probabilities, with other tokens at the least sure of the changed positions as long as
        the block was written so before (the original draws the position)."""
        assert proposal.second is not None and proposal.second_logp is not None
        place_b = torch.arange(block_nb.shape[1], device=block_nb.device)
        untried_nb = block_nb != ids_nb
        for _ in range(WAYS_OUT):
            again_n = self._seen(state, block_nb) & may_n
            least_n = proposal.probability.masked_fill(~untried_nb, torch.inf).argmin(1)
            other_nb = (place_b == least_n[:, None]) & untried_nb & again_n[:, None]
            block_nb = torch.where(other_nb, proposal.second, block_nb)
            logp_nb = torch.where(other_nb, proposal.second_logp, logp_nb)
            untried_nb = untried_nb & ~other_nb
        return block_nb, logp_nb

    def _seen(self, state: StepState, block_nb: Tensor) -> Tensor:
        """Whether an earlier step has written each slot's block so [n]."""
        earlier_K = torch.arange(state.history.shape[1], device=block_nb.device)
        earlier_nK = earlier_K < state.block_step[:, None] - 1
        return ((state.history == block_nb[:, None]).all(2) & earlier_nK).any(1)

    def _remember(self, state: StepState, block_nb: Tensor, active_n: Tensor) -> None:
        """Keeps what the step, which `block_step` counts already, has written."""
        index_n1b = (state.block_step - 1).clamp_min(0)[:, None, None].expand(-1, 1, block_nb.shape[1])
        kept_n1b = torch.where(active_n[:, None, None], block_nb[:, None].int(), state.history.gather(1, index_n1b))
        state.history.scatter_(1, index_n1b, kept_n1b)

    def _move(self, state: StepState, position_nb: Tensor, ids_nb: Tensor, block_nb: Tensor, logp_nb: Tensor) -> Tensor:
        """Carries out what is written, with the step and log-probability of each token, and logs it; whether each
        slot's block has changed [n]."""
        chosen_nb = block_nb != ids_nb
        deletes_nb, inserts_nb = (chosen_nb & (block_nb == i) for i in (self.delete_id, self.insert_id))
        source_nb, made_nb, restored_nb = moved(deletes_nb, inserts_nb)

        def carried(new_nb: Tensor, old_nb: Tensor, of_mask: int) -> Tensor:
            content_nb = torch.where(restored_nb, old_nb.gather(1, source_nb), new_nb.gather(1, source_nb))
            return content_nb.masked_fill(made_nb, of_mask)

        steps_nb, logps_nb = state.step_map.gather(1, position_nb), state.logp.gather(1, position_nb)
        chosen_step_nb = torch.where(chosen_nb, state.step.int()[:, None], steps_nb)
        after_nb = carried(block_nb, ids_nb, self.mask_id)
        after_logp_nb = carried(torch.where(chosen_nb, logp_nb, logps_nb), logps_nb, 0)
        state.put(position_nb, after_nb, carried(chosen_step_nb, steps_nb, 0), after_logp_nb)
        is_mask_nb = after_nb == self.mask_id
        state.new_mask.copy_(is_mask_nb & (made_nb | state.new_mask.gather(1, source_nb)))

        from_nb = position_nb.gather(1, source_nb)
        stays_nb = (from_nb == position_nb) & ~restored_nb
        changed_nb = (after_nb != ids_nb) | (~stays_nb & ~made_nb & ~is_mask_nb)
        place_nb = torch.where(made_nb | (stays_nb & chosen_nb), -1, from_nb - state.prompt[:, None])
        action_nb = torch.where(chosen_nb, block_nb, NO_CHOICE)
        chosen_logp_nb = torch.where(chosen_nb, logp_nb, 0.0)
        state.log(changed_nb | chosen_nb, position_nb, after_nb, chosen_logp_nb, action_nb, place_nb)
        return (after_nb != ids_nb).any(1)
