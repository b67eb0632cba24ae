"""Log-likelihoods of given responses: what lm-eval's multiple choice asks for.

Shapes: P prompt tokens, R response tokens, b block size, K rounds or samples, L tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models import DiffusionLM
from models.attention import Masked, block_causal_mask
from models.randomness import hash_uniform
from models.spec import delete_insert_ids
from sample.request import hash_key

COUNT_STREAM, ORDER_STREAM = 0, 1


class Likelihood(NamedTuple):
    """logp: nats, at temperature 1 over the whole vocabulary. greedy: whether each token is the likeliest where it is
    predicted, None where that was not looked at."""

    logp: float
    greedy: bool | None


@torch.inference_mode()
def chain(
    model: DiffusionLM, prompt_ids: Sequence[int], response_ids: Sequence[int], block_size: int, rows: int = 8
) -> Likelihood:
    """Of block families, exact: the probability that decoding one token a step, from left to right inside each block,
    draws this response. The sum of the log-probabilities that the sampler would give it (`Rollout.logprobs`).

    Round k predicts the k-th position of every block at once, from a row of clean blocks and of noisy ones (positions
    before the k-th as they are, masks from it on): b rows of at most 2 (P + R) tokens, `rows` of them at a time.
    """
    b, P, device = block_size, len(prompt_ids), model.device
    ids = torch.tensor([*prompt_ids, *response_ids], device=device)
    first, end = P // b * b, -(-len(ids) // b) * b
    clean = ids[: end - b]
    noisy_position = torch.arange(first, end, device=device)
    noisy = torch.full_like(noisy_position, model.mask_id)
    noisy[: len(ids) - first] = ids[first:]
    position_L = torch.cat([torch.arange(len(clean), device=device), noisy_position])
    layout = Masked(_noisy_mask(len(clean), noisy_position // b, b))
    logps, greedy = [], True
    for begun in range(0, b, rows):
        k_K1 = torch.arange(begun, min(begun + rows, b), device=device)[:, None]
        is_masked = (noisy_position >= P) & (noisy_position % b >= k_K1)
        row_KL = torch.cat([clean.expand(len(k_K1), -1), torch.where(is_masked, model.mask_id, noisy)], dim=1)
        hidden = model.hidden(row_KL, position_L.expand_as(row_KL), layout)[:, len(clean) :]
        read = (noisy_position % b == k_K1) & (noisy_position >= P) & (noisy_position < len(ids))
        logp, is_best = _log_probs(model, hidden[read], noisy.expand_as(read)[read])
        logps.append(logp.sum().item())
        greedy &= bool(is_best.all())
    return Likelihood(sum(logps), greedy)


@torch.inference_mode()
def bound(
    model: DiffusionLM, prompt_ids: Sequence[int], response_ids: Sequence[int], samples: int = 128, rows: int = 8
) -> Likelihood:
    """Under full attention: a Monte-Carlo estimate, without bias, of a lower bound on the log-likelihood,

        E_k E_masks (R / k) sum over the k masked tokens of log p(token | all that is not masked),

    k uniform over 1 .. R, k positions at random (LLaDA, arXiv:2502.09992, equation 6). The k of the samples are
    stratified; a response of one token needs one sample and is exact. Random numbers are a hash of the ids, so that the
    result depends on nothing else.
    """
    P, R, device = len(prompt_ids), len(response_ids), model.device
    samples = 1 if R == 1 else samples
    ids = torch.tensor([*prompt_ids, *response_ids], device=device)
    key = torch.tensor(hash_key((*prompt_ids, -1, *response_ids)), device=device)
    sample_K, position_R = torch.arange(samples, device=device), torch.arange(R, device=device)
    share_K = (sample_K + hash_uniform(key, sample_K * 0, sample_K, COUNT_STREAM)) / samples
    count_K = 1 + (share_K * R).long().clamp_max(R - 1)
    order_KR = hash_uniform(key, position_R, sample_K[:, None], ORDER_STREAM).argsort(dim=-1).argsort(dim=-1)
    masked_KR = order_KR < count_K[:, None]
    position_L, shift = torch.arange(P + R, device=device), int(model.logit_shift)
    total = 0.0
    for masked, count in zip(masked_KR.split(rows), count_K.split(rows), strict=True):
        row_KL = ids.repeat(len(masked), 1)
        row_KL[:, P:].masked_fill_(masked, model.mask_id)
        hidden = model.hidden(row_KL, position_L.expand_as(row_KL), Masked(None))[:, P - shift : P + R - shift]
        logp, _ = _log_probs(model, hidden[masked], ids[P:].expand_as(masked)[masked])
        total += (logp * R / count.repeat_interleave(count)).sum().item()
    return Likelihood(total / samples, None)


def _noisy_mask(clean_tokens: int, noisy_block: Tensor, block_size: int) -> Tensor:
    """Bool [L, L]: clean tokens see blocks up to their own, a noisy block the clean ones before it and itself."""
    device = noisy_block.device
    clean = block_causal_mask(clean_tokens, block_size, device)
    clean_block = torch.arange(clean_tokens, device=device) // block_size
    of_noisy = torch.cat([noisy_block[:, None] > clean_block, noisy_block[:, None] == noisy_block], dim=1)
    of_clean = torch.cat([clean, clean.new_zeros(clean_tokens, len(noisy_block))], dim=1)
    return torch.cat([of_clean, of_noisy])


def _log_probs(model: DiffusionLM, hidden_ND: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float64) of the targets, and whether each is the likeliest of what may be drawn."""
    logits_NV = model.lm_head(hidden_ND).float()
    target_N1 = target_N[:, None]
    logp_N = (logits_NV.gather(1, target_N1) - logits_NV.logsumexp(1, keepdim=True))[:, 0].double()
    for never in (model.mask_id, *(delete_insert_ids(model.spec) or ())):
        logits_NV[:, never] = -torch.inf
    logits_NV[:, model.text_vocab_size :] = -torch.inf
    return logp_N, logits_NV.argmax(1) == target_N
