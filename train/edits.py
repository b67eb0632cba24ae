"""What overwriting did to a step's responses: how often, and which answers it mended or broke.

Shapes: C canvas tokens.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reward.base import Reward
from sample import Rollout
from sample.events import NO_CHOICE

Floats = NDArray[np.float64]
MOST_DRAFTS = 256
"""Drafts that are verified in a step at most: the first ones."""


def edit_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of the responses' places, per response token: choices, places in which a token was overwritten, and in which one
    was masked again, and choices to delete and to insert where there are such; the mean of -log p (nats) of choices
    that change what stands, where there are any. Empty where no rollout has events."""
    edited = [rollout for rollout in rollouts if rollout.events is not None]
    tokens = sum(rollout.num_response_tokens for rollout in edited)
    if not tokens:
        return {}
    counts, surprisal, moves = np.zeros(5), [], False
    for rollout in edited:
        events = rollout.events
        assert events is not None
        place, action = np.array(events.place, np.int64), np.array(events.action, np.int64)
        inside = place < rollout.num_response_tokens
        counts[0] += (inside & (action != NO_CHOICE)).sum()
        counts[1] += len(np.unique(place[inside & events.overwrites()]))
        counts[2] += len(np.unique(place[inside & events.remasks()]))
        changes = events.overwrites()
        if events.delete_insert_ids is not None:
            moves = True
            kinds = [action == control for control in events.delete_insert_ids]
            counts[3:] += [(inside & kind).sum() for kind in kinds]
            changes |= kinds[0] | kinds[1]
        surprisal += (-np.array(events.logprob)[inside & changes]).tolist()
    names = ("edits/events_per_token", "edits/overwritten", "edits/masked_again", "edits/deleted", "edits/inserted")
    found = {name: float(count) / tokens for name, count in zip(names[: 5 if moves else 3], counts, strict=False)}
    finite = [value for value in surprisal if math.isfinite(value)]
    return found | ({"edits/surprisal": float(np.mean(finite))} if finite else {})


def surprisals(rollouts: Sequence[Rollout]) -> Floats:
    """-log p (nats) of every token that the responses have, one after another; where tokens may be overwritten or
    masked again, of every choice at their places, those that do not stand among them."""
    found = []
    for rollout in rollouts:
        logprobs = np.asarray(rollout.logprobs, dtype=np.float64)
        if rollout.events is not None:
            place, action = (np.array(x, np.int64) for x in (rollout.events.place, rollout.events.action))
            inside = (place < rollout.num_response_tokens) & (action != NO_CHOICE)
            logprobs = np.array(rollout.events.logprob, dtype=np.float64)[inside]
        found.append(-logprobs)
    return np.concatenate(found)


def draft(rollout: Rollout, stop_ids: Collection[int], max_new_tokens: int) -> Rollout:
    """The response as first written: every place holds the first token that was chosen for it. It ends with the first
    of stop_ids or of the id that ended the response, else where nothing was decided, or after max_new_tokens. Where
    tokens move, places do not say what was first written: the response as it is."""
    if rollout.events is not None and rollout.events.source is not None:
        return replace(rollout, events=None)
    ids = list(rollout.canvas_ids)
    if rollout.finish_reason == "stop":
        stop_ids = {*stop_ids, *rollout.token_ids[-1:]}
    if rollout.events is not None:
        for place, action in zip(reversed(rollout.events.place), reversed(rollout.events.action), strict=True):
            if action != NO_CHOICE:
                ids[place] = action
    decided = [*rollout.canvas_step_map, 0].index(0)
    length = min(decided, max_new_tokens)
    stop = next((i for i in range(length) if ids[i] in stop_ids), None)
    return replace(
        rollout,
        canvas_ids=ids,
        num_response_tokens=length if stop is None else stop + 1,
        finish_reason="length" if stop is None else "stop",
        events=None,
    )


def effects(
    reward: Reward,
    questions: Sequence[str],
    texts: Sequence[str],
    drafts: Sequence[str],
    rewards: Sequence[float | None],
    columns: dict[str, list[object]],
) -> dict[str, float]:
    """Counts of responses whose draft was wrong and whose text is right (mended), and the reverse (broken), among those
    whose text overwriting changed. Only of rewards that verify (`Reward.verifies`), at most MOST_DRAFTS a call.
    columns: of all responses."""
    changed = [i for i, given in enumerate(rewards) if given is not None and texts[i] != drafts[i]][:MOST_DRAFTS]
    mine = {name: [values[i] for i in changed] for name, values in columns.items()}
    verdicts = reward([questions[i] for i in changed], [drafts[i] for i in changed], **mine)
    pairs = [
        (was >= 1.0, (rewards[i] or 0.0) >= 1.0) for i, was in zip(changed, verdicts, strict=True) if was is not None
    ]
    return {
        "edits/changed_count": float(len(pairs)),
        "edits/mended_count": float(pairs.count((False, True))),
        "edits/broken_count": float(pairs.count((True, False))),
    }
