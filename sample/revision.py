"""Revision: how a denoising step changes tokens that its block holds already, and when such a block ends.

Shapes: n slots, b positions of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sample.choices import Choices
from sample.events import NO_CHOICE, Events
from sample.slots import NO_ROOM, Room, StepState
from sample.strategies import Proposal, best


def edits(proposal: Proposal, ids_nb: Tensor, written_nb: Tensor, choices: Choices) -> Tensor:
    """Where the proposal overwrites what is written: another token, with a score above the threshold, which is compared
    with what `threshold` is (`Proposal.probability`).

    x != v and p(v) > tau: token-to-token editing of LLaDA2.1 (arXiv:2602.08676, eq. 2), in the same step as, and
    whatever becomes of, the masked positions.
    """
    assert choices.edit_threshold is not None
    return written_nb & (proposal.token != ids_nb) & (proposal.probability > choices.edit_threshold)


def remasks(proposal: Proposal, written_nb: Tensor, left_n: Tensor, choices: Choices) -> Tensor:
    """Where what is written returns to the mask: the model gives the token that stands there a probability below the
    threshold; the least probable first, at most left_n.

    Remasking of low confidence as in ReMDM (arXiv:2503.00307), by the confidence that the token has now, as in Saber
    (arXiv:2510.18165), instead of that which it had when it was chosen.
    """
    assert proposal.held is not None and choices.remask_threshold is not None
    return best(-proposal.held, written_nb & (proposal.held < choices.remask_threshold), left_n)


def event_room(choices: Choices, block_size: int, max_new_tokens: int) -> Room:
    """The most events that a response can have; 0 where nothing is revised.

    With edits: a step fills a mask or finds none, and may change all w written tokens of the block. It begins with
    w = 0, 1, ..., b - 1 once each, and once more for every token that was remasked (at w = b - 1 at most); then come
    max_post_steps with w = b. Without edits: b tokens are written, and each that is remasked is written again. Where
    tokens move, each step of a block may change all of them.
    """
    if not choices.revises:
        return NO_ROOM
    blocks = -(-(max_new_tokens + block_size - 1) // block_size)
    if choices.moves:
        steps = most_steps(choices, block_size)
        return Room(steps * block_size * blocks, steps, block_size)
    b, remasked = block_size, choices.remask_budget if choices.remask_threshold is not None else 0
    edited = b * (b + 1) // 2 + b * (remasked + choices.max_post_steps)
    return Room((edited if choices.edit_threshold is not None else b + 2 * remasked) * blocks)


def most_steps(choices: Choices, block_size: int) -> int:
    """The most steps of a block where tokens move: those of its schedule, one for each place and the post steps. The
    original has 1000 here."""
    return 2 * block_size + choices.max_post_steps


def events_of(state: StepState, slot: int, mask_id: int, choices: Choices) -> Events:
    """What a slot has logged."""
    count = int(state.events[slot])
    assert count <= state.event_room, "event_room is no bound"
    names = ("event_step", "event_place", "event_token", "event_logp")
    step, place, token, logp = (getattr(state, name)[slot, :count].tolist() for name in names)
    if choices.moves:
        action, source = (getattr(state, name)[slot, :count].tolist() for name in ("event_action", "event_source"))
        return Events(step, place, token, action, logp, source, choices.delete_insert_ids)
    return Events(step, place, token, [NO_CHOICE if i == mask_id else i for i in token], logp)


class Revised(NamedTuple):
    """What a step has made of a block: its ids [n, b]; whether each slot's has changed, and whether no further step may
    change it [n]."""

    ids: Tensor
    changed: Tensor
    spent: Tensor


class Revision:
    """What a step does besides filling masks, under choices that revise."""

    def __init__(self, choices: Choices, mask_id: int):
        self.choices, self.mask_id = choices, mask_id

    def written(self, state: StepState, ids_nb: Tensor, position_nb: Tensor, active_n: Tensor) -> Tensor:
        """Positions of the block that hold a token of the response."""
        own_nb = (position_nb >= state.prompt[:, None]) & (position_nb < state.end[:, None])
        return own_nb & (ids_nb != self.mask_id) & active_n[:, None]

    def share(self, state: StepState, share_n: Tensor, masked_nb: Tensor, position_nb: Tensor) -> Tensor:
        """k [n] of the step, whose share of the block by its schedule is share_n."""
        return share_n

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
        """Fills the chosen positions, of those masked, changes written ones, and logs all of it. active_n: slots that
        take the step."""
        ids_nb, logp_nb = state.ids.gather(1, position_nb), proposal.logp
        if self.choices.edit_threshold is not None:
            edited_nb = edits(proposal, ids_nb, written_nb, self.choices)
            chosen_nb, written_nb = chosen_nb | edited_nb, written_nb & ~edited_nb
        ids_nb = torch.where(chosen_nb, proposal.token, ids_nb)
        state.commit(chosen_nb, position_nb, ids_nb, logp_nb)
        if self.choices.remask_threshold is not None:
            left_n = self.choices.remask_budget - state.remasked
            returned_nb = remasks(proposal, written_nb, left_n, self.choices)
            state.remasked += returned_nb.sum(1)
            state.remask(returned_nb, position_nb, self.mask_id)
            ids_nb, logp_nb = ids_nb.masked_fill(returned_nb, self.mask_id), logp_nb.masked_fill(returned_nb, 0.0)
            chosen_nb = chosen_nb | returned_nb
        state.log(chosen_nb, position_nb, ids_nb, logp_nb)
        state.post_steps += active_n & ~masked_nb.any(1)
        spent_n = state.post_steps >= self.choices.max_post_steps
        if self.choices.edit_threshold is None:
            spent_n |= state.remasked >= self.choices.remask_budget
        return Revised(ids_nb, chosen_nb.any(1), spent_n)
