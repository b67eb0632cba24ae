"""Decoding with edits and remasking, written down plainly: Python numbers, everything recomputed at every step. Its
rollouts have events as `sample.Events` states them."""

import numpy as np
import torch

from sample import Events, Rollout


def edited(model, prompt, key=(0,), *, block_size=4, max_new_tokens=13, stop_ids=(), most_post=3, seed=0):
    """A response in which masks are filled and tokens overwritten or masked again at random, at temperature 1. A block
    ends with a step that begins without masks and changes nothing, or after `most_post` that begin without any; the
    response with the block that then holds a stop id."""
    rng, P, full = np.random.default_rng([seed, len(prompt)]), len(prompt), model.attention == "full"
    end = P + max_new_tokens + (0 if full else -(P + max_new_tokens) % block_size)
    ids, rows, step = list(prompt) + [model.mask_id] * (end - P), [], 0
    for start in range(P if full else P // block_size * block_size, end, block_size):
        block, post, budget = range(max(start, P), min(start + block_size, end)), 0, 3
        while model.mask_id in (held := [ids[i] for i in block]) or post < most_post:
            post += model.mask_id not in held
            step += 1
            seen, given = (ids, {}) if full else (ids[: start + block_size], {"block_size": block_size})
            with torch.no_grad():
                logp_LV = torch.log_softmax(model.logits(torch.tensor([seen]), **given)[0].double(), -1).numpy()
            written = _writes(logp_LV, ids, block, model, rng, budget)
            budget -= sum(action < 0 for *_, action, _ in written)
            for i, token, action, logp in written:
                ids[i] = token
                rows.append((step, i - P, token, action, logp))
            if not written:
                break
        if any(ids[i] in stop_ids for i in block):
            break
    return _rollout(ids[P:], rows, list(prompt), key, max_new_tokens, step, stop_ids)


def _writes(logp_LV, ids, block, model, rng, budget):
    """(position, token, action, log-probability) of one step: one or two masks are filled; other tokens are overwritten
    (also by what they are) or masked again, `budget` of them at most. A step that begins without masks masks none, and
    now and then changes nothing."""
    masked = [i for i in block if ids[i] == model.mask_id]
    filled = rng.permutation(masked)[: rng.integers(1, 3)].tolist()
    edits, written = bool(masked) or rng.random() < 0.7, []
    for i in block:
        logp_V = logp_LV[i - int(model.logit_shift)]
        if i in filled or (i not in masked and edits and rng.random() < 0.4):
            chance_V = np.where(np.arange(len(logp_V)) == model.mask_id, 0.0, np.exp(logp_V))
            token = int(rng.choice(len(chance_V), p=chance_V / chance_V.sum()))
            written.append((i, token, token, float(logp_V[token])))
        elif budget and masked and i not in masked and rng.random() < 0.3:
            written.append((i, model.mask_id, -1, 0.0))
            budget -= 1
    return written


def _rollout(ids, rows, prompt, key, max_new_tokens, step, stop_ids):
    """The record: the last write of each place is what the canvas holds."""
    steps, logps = [0] * len(ids), [0.0] * len(ids)
    for s, place, _, action, logp in sorted(rows):
        steps[place], logps[place] = (0, 0.0) if action < 0 else (s, logp)
    stops = [i for i, token in enumerate(ids[:max_new_tokens]) if token in stop_ids and steps[i]]
    length, reason = (stops[0] + 1, "stop") if stops else (max_new_tokens, "length")
    return Rollout(key, prompt, ids, steps, logps, length, reason, step, events=Events.of(rows))
