"""Decoding with edits and remasking written down a second time, as `oracle` has it without: one sequence, everything
recomputed at every step."""

import torch
from oracle import Answer, candidate, even_shares, select, shares, softmax, steps_of_block


def decode(model, prompt, config, key):
    """(Answer, events): `config` is a SamplingConfig after `for_model`; events (step, place, token, action, logp)."""
    b, mask, P, shift = config.block_size, model.mask_id, len(prompt), int(model.logit_shift)
    full = model.attention == "full"
    limit = P + config.max_new_tokens
    end = limit if full else -(-limit // b) * b
    ids, steps, logps = list(prompt) + [mask] * (end - P), [0] * end, [0.0] * end
    stop_ids = config.stop_ids if config.early_stop else ()
    step, block, filled, events = 0, 0, False, []
    for block, start in enumerate(range(P if full else P // b * b, end, b)):
        own = [i for i in range(start, min(start + b, end)) if i >= P]
        plan = plan_of(model, b, own, block, config)
        calls = post_steps = remasked = 0
        while True:
            step += 1
            rows = logits(model, ids, own, b)
            masked, written = ([i for i in own if (ids[i] == mask) == empty] for empty in (True, False))
            post_steps += not masked
            may = masked[:1] if shift and calls == 0 else masked
            found = {
                i: candidate(rows[i - shift].tolist(), mask, config, key, i, step - 1, model.text_vocab_size)
                for i in [*may, *written]
            }
            k = max(1, plan[min(calls, len(plan) - 1)])
            changes = {i: found[i]["token"] for i in select(found, may, k, config, equal_passes=full)} if may else {}
            for i in written:
                wanted = config.edit_threshold is not None and found[i]["passing"] > config.edit_threshold
                if wanted and found[i]["token"] != ids[i]:
                    changes[i] = found[i]["token"]
            if config.remask_threshold is not None:
                held = {i: softmax(rows[i - shift].tolist())[ids[i]] for i in written if i not in changes}
                doubted = sorted((p, i) for i, p in held.items() if p < config.remask_threshold)
                returned = [i for _, i in doubted[: config.remask_budget - remasked]]
                remasked += len(returned)
                changes |= dict.fromkeys(returned, mask)
            for i, token in sorted(changes.items()):
                chosen = token != mask
                ids[i], steps[i], logps[i] = token, step * chosen, found[i]["logp"] * chosen
                events.append((step, i - P, token, token if chosen else -1, logps[i]))
            calls += 1
            final = (not masked and not changes) or post_steps >= config.max_post_steps
            final |= config.edit_threshold is None and remasked >= config.remask_budget
            if final and not any(ids[i] == mask for i in own):
                break
        stops = [i for i in own if ids[i] in stop_ids and i < limit]
        filled = shift and config.early_stop and all(ids[i] == config.pad_id for i in own)
        if filled and not stops and own[-1] + 1 < end:
            rest = end - own[-1] - 1
            ids[-rest:], steps[-rest:] = [config.pad_id] * rest, [step + 1] * rest
        if stops or filled:
            break
    last = end if full else own[-1] + 1
    stops = [i for i in range(P, min(last, limit)) if ids[i] in config.stop_ids]
    length = stops[0] + 1 - P if stops else min(limit, last) - P
    reason = "stop" if stops else "length"
    return Answer(ids[P:last], steps[P:last], logps[P:last], length, reason, step, block + 1), events


def plan_of(model, b, own, block, config):
    steps = steps_of_block(config.steps_per_block, block)
    if model.attention == "block":
        return even_shares(b, steps)
    plan = shares(model, len(own), steps, config)[: -len(own)]
    return [k for k in plan if k > 0] or [1]


def logits(model, ids, own, b):
    with torch.no_grad():
        if model.attention == "full":
            return model.logits(torch.tensor([ids]))[0].double()
        return model.logits(torch.tensor([ids[: own[-1] + 1]]), block_size=b)[0].double()
