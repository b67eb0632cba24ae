"""The sampler's semantics written down a second time, as plainly as possible: one sequence, Python numbers, the whole
prefix recomputed at every step (block families) or the whole sequence, or a window of it where the cache says so (full
attention). Only the hash is the sampler's own."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from models.randomness import hash_uniform
from sample.request import hash_key


@dataclass
class Answer:
    canvas_ids: list
    canvas_step_map: list
    canvas_logprobs: list
    num_response_tokens: int
    finish_reason: str
    num_steps: int
    num_blocks: int


def decode(model, prompt, config, key):
    """`config` is a SamplingConfig after `for_model`."""
    b, mask, P = config.block_size, model.mask_id, len(prompt)
    limit = P + config.max_new_tokens
    ids, steps, logps = list(prompt), [0] * P, [0.0] * P
    start, step, block = P // b * b, 0, 0
    while True:
        grow = start + b - len(ids)
        ids, steps, logps = ids + [mask] * grow, steps + [0] * grow, logps + [0.0] * grow
        plan = even_shares(b, steps_of_block(config.steps_per_block, block))
        for k in plan + [1] * b:
            masked = [i for i in range(start, start + b) if ids[i] == mask]
            if not masked:
                break
            step += 1
            rows = model.logits(torch.tensor([ids]), block_size=b)[0].double()
            found = {i: candidate(rows[i].tolist(), mask, config, key, i, step - 1) for i in masked}
            for i in select(found, masked, max(k, 1), config):
                ids[i], steps[i], logps[i] = found[i]["token"], step, found[i]["logp"]
            done = len(ids) if mask not in ids else ids.index(mask)
            stops = [i for i in range(P, min(done, limit)) if ids[i] in config.stop_ids]
            if stops or done >= limit:
                length = stops[0] + 1 - P if stops else config.max_new_tokens
                return Answer(ids[P:], steps[P:], logps[P:], length, "stop" if stops else "length", step, block + 1)
        start, block = start + b, block + 1


def decode_full(model, prompt, config, key):
    """Dream's (models with logit_shift) and LLaDA's way. `config` is a SamplingConfig after `for_model`."""
    b, mask, P = config.block_size, model.mask_id, len(prompt)
    end, shift = P + config.max_new_tokens, int(model.logit_shift)
    ids, steps, logps = list(prompt) + [mask] * (end - P), [0] * end, [0.0] * end
    stop_ids = config.stop_ids if config.early_stop else ()
    step, filled = 0, False
    for block, start in enumerate(range(P, end, b)):
        stop = min(start + b, end)
        plan = shares(model, stop - start, steps_of_block(config.steps_per_block, block), config)
        frozen = Frozen(model)
        for call, k in enumerate(plan):
            masked = [i for i in range(start, stop) if ids[i] == mask]
            if not masked or k == 0:
                continue
            step += 1
            rows = frozen.logits(ids, start, stop, config, first=call == 0)
            if shift and call == 0:
                masked = masked[:1]
            found = {
                i: candidate(rows[i - shift].tolist(), mask, config, key, i, step - 1, model.text_vocab_size)
                for i in masked
            }
            for i in select(found, masked, k, config, equal_passes=True):
                ids[i], steps[i], logps[i] = found[i]["token"], step, found[i]["logp"]
            done = ids.index(mask) if mask in ids else end
            if any(ids[i] in stop_ids for i in range(start, min(done, stop))):
                break
        else:
            filled = shift and config.early_stop and all(i == config.pad_id for i in ids[start:stop])
            if not filled:
                continue
            ids[stop:], steps[stop:] = [config.pad_id] * (end - stop), [step + 1] * (end - stop)
        break
    stops = [i for i in range(P, end) if ids[i] in config.stop_ids]
    length = stops[0] + 1 - P if stops else end - P
    reason = "stop" if stops else "length"
    return Answer(ids[P:], steps[P:], logps[P:], length, reason, step, -(-config.max_new_tokens // b))


def shares(model, size, steps, config):
    """How many positions each call of a block decides, until all are."""
    if config.strategy == "low_confidence_dynamic":
        return [1] * size
    if not model.logit_shift:
        return even_shares(size, steps) + [1] * size
    time, plan, left = torch.linspace(1, 0.001, steps + 1), [1], size - 1
    for i in range(1, steps - 1):
        plan.append(math.floor(left * (1 - time[i + 1] / time[i])))
        left -= plan[-1]
    return [*plan, left] + [1] * size


class Frozen:
    """Logits [L, V] at every position, from the whole sequence, or from a window against what the first call kept."""

    def __init__(self, model):
        self.model, self.kept = model, {}

    def logits(self, ids, start, stop, config, first):
        L = len(ids)
        self.run, self.seen = range(L), L
        if not first and config.cache == "dual":
            self.run = range(start, stop)
        elif not first and config.cache == "prefix":
            reach = L if config.further_horizon is None else start + config.block_size + config.further_horizon
            self.seen = min(reach, L)
            self.run = range(start, self.seen)
        positions = torch.tensor(self.run)[None]
        hidden = self.model.hidden(torch.tensor(ids)[positions], positions, self)
        rows = torch.full((L, self.model.hf_config.vocab_size), math.nan, dtype=torch.float64)
        rows[positions[0]] = self.model.lm_head(hidden)[0].double()
        return rows

    def attend(self, layer, query, key, value, scale):
        if len(self.run) == self.seen:
            self.kept[layer] = (key, value)
        kept = [old.clone() for old in self.kept[layer]]
        for old, new in zip(kept, (key, value), strict=True):
            old[:, :, list(self.run)] = new
        groups = query.shape[1] // key.shape[1]
        keys, values = (old[:, :, : self.seen].repeat_interleave(groups, dim=1) for old in kept)
        return F.scaled_dot_product_attention(query, keys, values, scale=scale).transpose(1, 2)


def steps_of_block(steps_per_block, block):
    if isinstance(steps_per_block, int):
        return steps_per_block
    return steps_per_block[min(block, len(steps_per_block) - 1)]


def even_shares(total, parts):
    return [total // parts + (1 if i < total % parts else 0) for i in range(parts)]


def softmax(values):
    peak = max(values)
    weights = [math.exp(v - peak) for v in values]
    total = sum(weights)
    return [w / total for w in weights]


def candidate(logits, mask, config, key, position, step, text_ids=None, but=(), also=()):
    """Token, log-probability, score and entropy of one position. but, also: ids that are not allowed, and that are."""
    probability = softmax(logits)
    text_ids = len(logits) if text_ids is None else text_ids
    allowed = [
        v if t != mask and t not in but and (t < text_ids or t in also) else -math.inf for t, v in enumerate(logits)
    ]
    drawn_from = probability
    if config.temperature == 0.0 or config.top_k == 1:
        token = max(range(len(allowed)), key=lambda t: (allowed[t], -t))
    else:
        drawn_from = softmax(
            keep_top_p(keep_top_k([v / config.temperature for v in allowed], config.top_k), config.top_p)
        )
        goal = uniform(config.seed, key, position, step, 0) * sum(drawn_from)
        reached = 0.0
        for t, p in enumerate(drawn_from):
            reached += p
            if reached > goal:
                token = t
                break
    logp = math.log(probability[token])
    entropy = -sum(p * math.log(p) for p in probability if p > 0)
    first, second = sorted(probability, reverse=True)[:2]
    scores = {
        "confidence": drawn_from[token] if config.confidence == "tempered" else probability[token],
        "margin_confidence": first - second,
        "neg_entropy": -entropy,
        "random": uniform(config.seed, key, position, step, 1),
    }
    penalty = config.pad_target_penalty if token == config.pad_id else 1.0
    scores = {name: value / penalty if value >= 0 else value * penalty for name, value in scores.items()}
    score = scores[config.target]
    passing = scores["margin_confidence" if config.target == "margin_confidence" else "confidence"]
    if config.alg_temp > 0 and config.strategy == "low_confidence_static":
        score = score / config.alg_temp - math.log(-math.log(uniform(config.seed, key, position, step, 1)))
    return {"token": token, "logp": logp, "score": score, "entropy": entropy, "passing": passing}


def keep_top_k(logits, k):
    if k == 0 or k >= len(logits):
        return logits
    kth = sorted(logits, reverse=True)[k - 1]
    return [v if v >= kth else -math.inf for v in logits]


def keep_top_p(logits, p):
    if p == 1.0:
        return logits
    probability = softmax(logits)
    mass = 0.0
    for crossing in sorted(range(len(logits)), key=lambda t: -logits[t]):
        mass += probability[crossing]
        if mass >= p:
            break
    return [v if v >= logits[crossing] else -math.inf for v in logits]


def uniform(seed, key, position, step, stream):
    numbers = (torch.tensor([value]) for value in (hash_key(key, seed), position, step))
    return float(hash_uniform(*numbers, stream))


def select(found, masked, k, config, equal_passes=False):
    """The positions that the step commits."""
    k = min(k, len(masked))
    by_score = sorted(masked, key=lambda i: (-found[i]["score"], i))
    if config.strategy == "sequential":
        return masked[:k]
    if config.strategy == "low_confidence_static":
        return by_score[:k]
    if config.strategy == "low_confidence_dynamic":
        passed = [i for i in masked if found[i]["passing"] > config.threshold - 1e-12 * equal_passes]
        return passed if len(passed) >= k else by_score[:k]
    assert config.strategy == "entropy_bounded"
    surest, total, chosen = sorted(masked, key=lambda i: (found[i]["entropy"], i)), 0.0, []
    for i in surest:
        total += found[i]["entropy"]
        if chosen and total >= config.entropy_bound:
            break
        chosen.append(i)
    return chosen


def same(got, want):
    assert got.canvas_ids == want.canvas_ids
    assert got.canvas_step_map == want.canvas_step_map
    assert got.canvas_logprobs == pytest.approx(want.canvas_logprobs, abs=1e-5)
    for name in ("num_response_tokens", "finish_reason", "num_steps"):
        assert getattr(got, name) == getattr(want, name)
