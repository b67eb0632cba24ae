"""Text to image: a picture's codes are unmasked like text, drawn from the codes' ids alone.

MMaDA's t2i_generate (https://github.com/Gen-Verse/MMaDA) after MaskGIT (arXiv:2202.04200).

Shapes: n slots, b positions of a block, N positions that may be decided, V vocabulary, K codes, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from models import DiffusionLM
from models.attention import Masked
from sample.config import SamplingConfig
from sample.slots import StepState
from sample.strategies import Proposal
from sample.targets import ORDER_STREAM, Coordinates
from sample.unmask import Rules, propose

PIECE_ELEMENTS = 2**28
"""Logits that exist at a time."""


def positions_at_once(vocab_size: int) -> int:
    """Positions whose logits exist at a time."""
    return max(1, PIECE_ELEMENTS // vocab_size)


class Drawer:
    """Proposals for the positions of pictures.

    Tokens, confidence and score are those of the codes alone, under guidance g > 0 of the logits (1 + g) conditional -
    g unconditional (arXiv:2207.12598); `logp` is the model's own: conditional, over the whole vocabulary.
    choices.alg_temp is MMaDA's temperature: noise on log confidence, which ends with the last step.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig, rules: Rules):
        self.model, self.config, self.drawing = model, config, model.need_drawing()
        self.noise = config.alg_temp if rules.strategy.draws_order else 0.0
        self.rules = replace(rules, choices=replace(rules.choices, alg_temp=0.0))
        steps = config.steps_per_block
        assert isinstance(steps, int)
        self.fade = (1.0 - torch.arange(1, steps + 1, device=model.device) / steps).cumprod(0)

    def propose(self, hidden_nbD: Tensor, row_N: Tensor, coordinates: Coordinates, state: StepState) -> Proposal:
        """Candidates [N] of the flat positions row_N of [n, b]."""
        hidden_ND, blank_ND = hidden_nbD.flatten(0, 1)[row_N], None
        if self.config.guidance:
            blank_ND = self._unconditional(state).flatten(0, 1)[row_N]
        pieces = [
            self._proposed(hidden_ND[piece], None if blank_ND is None else blank_ND[piece], at)
            for piece, at in self._pieces(coordinates)
        ]
        return Proposal.joined(pieces)

    def _pieces(self, coordinates: Coordinates) -> Iterator[tuple[slice, Coordinates]]:
        rows = positions_at_once(int(self.model.hf_config.vocab_size))
        for start in range(0, len(coordinates.key), rows):
            piece = slice(start, start + rows)
            yield piece, Coordinates(*(value[piece] for value in coordinates))

    def _proposed(self, hidden_ND: Tensor, blank_ND: Tensor | None, coordinates: Coordinates) -> Proposal:
        logits_NV, codes = self.model.lm_head(hidden_ND, fp32=True), self.drawing.codes
        lse_N, logits_NK = logits_NV.logsumexp(-1), logits_NV[:, codes.start : codes.stop]
        guided_NK = logits_NK.clone()
        if blank_ND is not None:
            blank_NK = self.model.lm_head(blank_ND, fp32=True)[:, codes.start : codes.stop]
            guided_NK = (1.0 + self.config.guidance) * logits_NK - self.config.guidance * blank_NK
        proposal = propose(guided_NK, coordinates, self.rules, mask_id=None)
        logp = logits_NK.gather(-1, proposal.token[:, None])[:, 0] - lse_N
        score = proposal.score
        if self.noise:
            uniform = coordinates.uniform(ORDER_STREAM).clamp_min(2.0**-53)
            fade = self.fade[coordinates.step.clamp_max(len(self.fade) - 1)]
            score = score.log() - self.noise * fade * (-uniform.log()).log().float()
        return proposal._replace(token=proposal.token + codes.start, logp=logp, score=score)

    def _unconditional(self, state: StepState) -> Tensor:
        """Hidden states [n, b, D] of the block at hand behind the prompt of an empty text."""
        n, drawing, device = len(state.ids), self.drawing, state.ids.device
        canvas = torch.arange(self.config.max_new_tokens, device=device) + state.prompt[:, None]
        ends = [torch.tensor(ids, device=device).expand(n, -1) for ids in (drawing.prompt([]), drawing.suffix_ids)]
        ids_nL = torch.cat([ends[0], state.ids.gather(1, canvas), ends[1]], 1)
        positions = torch.arange(ids_nL.shape[1], device=device).expand(n, -1)
        hidden_nLD = self.model.hidden(ids_nL, positions, Masked(None))
        offset = torch.arange(self.config.block_size or 1, device=device)
        index = ends[0].shape[1] + (state.start - state.prompt)[:, None] + offset
        return hidden_nLD[torch.arange(n, device=device)[:, None], index.clamp_max(ids_nL.shape[1] - 1)]
