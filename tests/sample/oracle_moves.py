"""Decoding with DELETE and INSERT written down a second time: one sequence, everything recomputed at every step, a
block as a list of cells that are dropped, opened and cut."""

from dataclasses import dataclass, replace

from oracle import Answer, candidate, even_shares, select, steps_of_block
from oracle_revision import logits


@dataclass
class Cell:
    """What a place holds: its token, and for a token the step that chose it and its log-probability."""

    token: int
    step: int = 0
    logp: float = 0.0
    is_new: bool = False
    came_from: int = -1


def decode(model, prompt, config, key):
    """(Answer, events): `config` is a SamplingConfig after `for_model`; events (step, place, token, action, logp,
    source)."""
    b, mask, P = config.block_size, model.mask_id, len(prompt)
    limit = P + config.max_new_tokens
    end = -(-limit // b) * b
    cells = [Cell(token) for token in prompt] + [Cell(mask) for _ in range(end - P)]
    step, events = 0, []
    for block, start in enumerate(range(P // b * b, end, b)):
        own = [i for i in range(start, start + b) if i >= P]
        state = Block(config, mask, len(own), min(b, steps_of_block(config.steps_per_block, block)))
        while True:
            step += 1
            rows = logits(model, [cell.token for cell in cells], own, b)
            found = {i: proposals(rows[i].tolist(), model, config, key, i, step - 1) for i in own}
            held = [cells[i] for i in own]
            actions, is_last = state.write(held, [found[i] for i in own])
            after = carry_out(held, actions, own, config.delete_insert_ids, mask, step)
            for place, i in enumerate(own):
                action, was, now = actions.get(place), held[place], after[place]
                moved_here = now.came_from not in (-1, i) and now.token != mask
                if action is not None or now.token != was.token or moved_here:
                    stays = action is not None and action[0] == now.token and now.came_from == i
                    source = -1 if stays or now.came_from < 0 else now.came_from - P
                    events.append((step, i - P, now.token, *(action or (-1, 0.0)), source))
                cells[i] = replace(now, came_from=-1)
            same = [cell.token for cell in held] == [cell.token for cell in after]
            if is_last or (same and all(cell.token != mask for cell in held)):
                break
        stop_ids = config.stop_ids if config.early_stop else ()
        if any(cells[i].token in stop_ids and i < limit for i in own):
            break
    ids = [cell.token for cell in cells]
    last = own[-1] + 1
    stops = [i for i in range(P, min(last, limit)) if ids[i] in config.stop_ids]
    length = stops[0] + 1 - P if stops else min(limit, last) - P
    own = cells[P:last]
    steps, logps = [cell.step for cell in own], [cell.logp for cell in own]
    return Answer(ids[P:last], steps, logps, length, "stop" if stops else "length", step, block + 1), events


class Block:
    """What is kept of a block between its steps."""

    def __init__(self, config, mask, masks, steps):
        self.config, self.mask, self.shares = config, mask, even_shares(masks, steps)
        self.calls = self.post = 0
        self.seen = []

    def write(self, held, found):
        """{place: (token, logp)} of what the step chooses, and whether it is the block's last."""
        config = self.config
        masked = [p for p, cell in enumerate(held) if cell.token == self.mask]
        original = [p for p in masked if not held[p].is_new]
        self.post = 0 if original else self.post + 1
        k = len(masked)
        if self.calls < len(self.shares):
            k = self.shares[self.calls] + len(masked) - len(original)
        filled = select(dict(enumerate(f["first"] for f in found)), masked, k, config)
        self.calls += 1
        is_last = self.calls == 2 * config.block_size + config.max_post_steps
        is_last |= self.post >= config.max_post_steps if config.max_post_steps else {*original} <= {*filled}
        actions = {}
        for p, f in enumerate(found):
            edit = p not in masked and f["first"]["passing"] > config.edit_threshold
            if p in (masked if is_last else filled) or (edit and f["first"]["token"] != held[p].token):
                first, controls = f["first"], config.delete_insert_ids
                chosen = f["text"] if is_last and first["token"] in controls else (first["token"], first["logp"])
                actions[p] = chosen
        block = [cell.token for cell in held]
        written = [actions[p][0] if p in actions else token for p, token in enumerate(block)]
        changed = sorted(
            (p for p in actions if written[p] != block[p]), key=lambda p: (found[p]["first"]["passing"], p)
        )
        for p in [] if is_last else changed[:5]:
            if written in self.seen:
                actions[p] = found[p]["second"]
                written[p] = actions[p][0]
        self.seen.append(written)
        return {p: action for p, action in actions.items() if action[0] != block[p]}, is_last


def carry_out(held, actions, own, controls, mask, step):
    """The cells after their actions: dropped, opened, cut, and filled up with new masks."""
    after = []
    for p, cell in enumerate(held):
        token, logp = actions.get(p, (None, 0.0))
        if token == controls[0]:
            continue
        if token == controls[1]:
            after.append(Cell(mask, is_new=True))
            after.append(replace(cell, came_from=own[p]))
        elif token is None:
            after.append(replace(cell, came_from=own[p]))
        else:
            after.append(Cell(token, step, logp, came_from=own[p]))
    missing = len(held) - len(after)
    return after[: len(held)] + [Cell(mask, is_new=True) for _ in range(missing)]


def proposals(row, model, config, key, position, step):
    """The candidate, the one among tokens that move nothing, and the likeliest token after a greedy candidate."""
    mask, controls = model.mask_id, config.delete_insert_ids
    at = (mask, config, key, position, step, model.text_vocab_size)
    first = candidate(row, *at, also=controls)
    text = candidate(row, *at, but=controls)
    second = first
    if config.temperature == 0.0 or config.top_k == 1:
        second = candidate(row, *at, but=(first["token"],), also={*controls} - {first["token"]})
    return {"first": first, **{name: (f["token"], f["logp"]) for name, f in (("text", text), ("second", second))}}
