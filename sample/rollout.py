"""The record of one response: what the sampler writes, and reward, trainer, viewer and disk read."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sample.events import Events
from sample.experts import Routing

Key = tuple[int | str, ...]


@dataclass(frozen=True)
class Rollout:
    """One sampled response with the order in which it was unmasked.

    key: names the sample, and with the seed fixes its randomness. prompt_ids: token ids, and the image id at positions
        for which features of a picture stand.
    canvas_ids: every id after the prompt when decoding ended (mask ids where nothing was decided): whole blocks, or
        for full attention max_new_tokens.
    canvas_step_map: the denoising step, counted from 1 over the response, that decided each position; 0 = still masked;
        num_steps + 1 = filled with pads after a block of pads alone (Dream).
    canvas_logprobs: log-probability (nats, temperature 1, whole vocabulary) of each token at its step; 0 = undecided
        or filled.
    num_response_tokens: length of the view that counts as the response: up to the first stop id (kept) or
        max_new_tokens.
    finish_reason: "stop" or "length"; a picture is whole, which counts as "stop". num_steps: denoising steps of this
    sequence. weights_version: of the sampler's weights.
    suffix_ids: ids right of the canvas, there from the start and seen in every step (what ends a picture).
    images: of each picture that stands as features in the prompt, the first 16 hexadecimal digits of its bytes' sha256;
        "" where they are not known.
    events: every write of the canvas, where a token may be overwritten or masked again; canvas_step_map and
        canvas_logprobs then are those of the last write that stands. None: every position was decided once.
    routing: of a mixture, the experts of every token in every forward, where they are recorded.
    """

    key: Key
    prompt_ids: list[int]
    canvas_ids: list[int]
    canvas_step_map: list[int]
    canvas_logprobs: list[float]
    num_response_tokens: int
    finish_reason: Literal["stop", "length"]
    num_steps: int
    weights_version: int = 0
    images: list[str] = field(default_factory=list)
    suffix_ids: list[int] = field(default_factory=list)
    events: Events | None = None
    routing: Routing | None = None

    @property
    def token_ids(self) -> list[int]:
        return self.canvas_ids[: self.num_response_tokens]

    @property
    def step_map(self) -> list[int]:
        return self.canvas_step_map[: self.num_response_tokens]

    @property
    def logprobs(self) -> list[float]:
        return self.canvas_logprobs[: self.num_response_tokens]

    def to_json(self, **more: Any) -> str:
        return json.dumps(self.row() | more)

    def row(self) -> dict[str, Any]:
        """As a dict of lists and numbers, without images, suffix and events where it has none."""
        row = vars(self) | {"events": None if self.events is None else self.events.row()}
        row["routing"] = None if self.routing is None else self.routing.row()
        optional = ("images", "suffix_ids", "events", "routing")
        return {name: value for name, value in row.items() if value or name not in optional}

    @staticmethod
    def from_dict(row: dict[str, Any]) -> "Rollout":
        """Of a row of `to_json`, also one from before there were events. KeyError for a missing field, ValueError for
        events that are damaged, with the rollout's key."""
        known: dict[str, Any] = {name: row[name] for name in Rollout.__dataclass_fields__ if name in row}
        rollout = Rollout(**known | {"key": tuple(row["key"])})
        events, routing = row.get("events"), row.get("routing")
        try:
            if events is not None:
                events = Events.from_row(events)
                events.check(rollout.canvas_ids, rollout.canvas_step_map, rollout.canvas_logprobs, rollout.num_steps)
            if routing is not None:
                routing = Routing.from_row(routing)
        except ValueError as error:
            raise ValueError(f"rollout {rollout.key} has {error}: the file is damaged; write it again.") from error
        return replace(rollout, events=events, routing=routing)
