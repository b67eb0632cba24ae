"""Traces: the order in which responses were unmasked, from a JSONL file of rl.py or eval.py."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sample.events import Events

MOST_STEPS, MOST_IDS = 100_000, 2**31
"""What a page can show, and more than any sampler writes: steps of a response, ids of a vocabulary."""
CANVAS = ("canvas_ids", "canvas_step_map", "canvas_logprobs")
VIEW = ("token_ids", "step_map", "logprobs")


@dataclass(frozen=True)
class Trace:
    """One sample's trajectory.

    group: the task and the pass that sampled it; name: the sample inside its group. prompt: token ids, or the text
    where the file has no ids. ids, steps, logprobs: those of the canvas, or of the response where the file has no
    canvas; step 0 = still masked; logprobs in nats, None where the file has none. num_response_tokens: so many
    from the first are the response. block_size: None where the row has none. images: digests of the prompt's pictures,
    in order. events: every write, where tokens were overwritten or masked again. is_drawn: the response is a picture.
    """

    group: str
    name: str
    prompt: list[int] | str
    ids: list[int]
    steps: list[int]
    logprobs: list[float | None] | None
    num_response_tokens: int
    num_steps: int
    finish_reason: str
    reward: float | None
    advantage: float | None
    answer: str | None
    block_size: int | None
    images: tuple[str, ...] = ()
    events: Events | None = None
    is_drawn: bool = False

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> "Trace":
        """A row of rollouts.jsonl (rl.py), samples.jsonl (eval.py) or `Rollout.to_json`. ValueError names what is
        wrong."""
        ids_name, steps_name, logprobs_name = CANVAS if "canvas_step_map" in row else VIEW
        if steps_name not in row:
            raise ValueError(
                "has no step_map (nor canvas_step_map), so the order of unmasking is not known. rl.py writes it "
                "always, eval.py with rollout.output_unmasking_history=true"
            )
        ids, steps = _whole_numbers(row, ids_name, MOST_IDS), _whole_numbers(row, steps_name, MOST_STEPS)
        if len(ids) != len(steps):
            raise ValueError(f"has {len(ids)} {ids_name} but {len(steps)} steps in {steps_name}")
        logprobs = row.get(logprobs_name)
        if logprobs is not None and not (isinstance(logprobs, list) and len(logprobs) == len(ids)):
            raise ValueError(f"has a {logprobs_name} that is no list of {len(ids)} numbers, one for each token")
        key = row.get("key")
        key = key if isinstance(key, list) and key else [None]
        ids_of_prompt = _whole_numbers(row, "prompt_ids", MOST_IDS, -MOST_IDS) if "prompt_ids" in row else None
        prompt = str(row.get("prompt", "")) if ids_of_prompt is None else ids_of_prompt
        num_response_tokens = row.get("num_response_tokens", len(ids))
        if not isinstance(num_response_tokens, int) or not 0 <= num_response_tokens <= len(ids):
            raise ValueError(
                f"has num_response_tokens {_short(num_response_tokens)}; it must be between 0 and {len(ids)}"
            )
        num_steps = row.get("num_steps", 0)
        if not isinstance(num_steps, int) or not 0 <= num_steps <= MOST_STEPS:
            raise ValueError(f"has num_steps {_short(num_steps)}; it must be a whole number from 0 to {MOST_STEPS:,}")
        return Trace(
            group=_group(row, key),
            name=str(row.get("sample", key[-1] if key[-1] is not None else "")),
            prompt=prompt,
            ids=ids,
            steps=steps,
            logprobs=None if logprobs is None else [_finite(value) for value in logprobs],
            num_response_tokens=num_response_tokens,
            num_steps=max([*steps, num_steps]),
            finish_reason=str(row.get("finish_reason", "")),
            reward=_finite(row.get("reward")),
            advantage=_finite(row.get("advantage")),
            answer=row["answer"] if isinstance(row.get("answer"), str) else None,
            block_size=as_block_size(row.get("block_size")),
            images=tuple(map(str, row["images"])) if isinstance(row.get("images"), list) else (),
            events=_events(row, ids, steps, logprobs, num_steps),
            is_drawn=bool(row.get("suffix_ids")),
        )

    def first_block_tokens(self, block_size: int, attention: Literal["block", "full"] | None) -> int | None:
        """How many positions after the prompt belong to the first block of `block_size`; None where it is unknown.

        Blocks of full attention start after the prompt; those of block families lie on the grid from position 0. For an
        unknown family (None) the grid is taken where the blocks were then decided one after another.
        """
        if attention == "full":
            return block_size
        if isinstance(self.prompt, str):
            return None
        on_grid = block_size - len(self.prompt) % block_size
        return on_grid if attention == "block" or self._in_order(on_grid, block_size) else block_size

    def _in_order(self, first: int, block_size: int) -> bool:
        last = 0
        for start in range(first - block_size, len(self.steps), block_size):
            decided = [step for step in self.steps[max(0, start) : start + block_size] if step]
            if decided and min(decided) <= last:
                return False
            last = max([last, *decided])
        return True


@dataclass(frozen=True)
class Chosen:
    """Traces by group, in the file's order, out of `num_samples` samples in `num_groups` groups. unfinished: the last
    line was still being written and is left out."""

    groups: dict[str, list[Trace]]
    num_samples: int
    num_groups: int
    unfinished: bool


def samples_of(path: Path) -> Path:
    """The file itself, or that of a run folder. ValueError where the folder has none."""
    if not path.is_dir():
        return path
    found = next((path / name for name in ("rollouts.jsonl", "samples.jsonl") if (path / name).is_file()), None)
    if found is None:
        raise ValueError(f"{path} has no rollouts.jsonl (rl.py) and no samples.jsonl (eval.py): give a run folder.")
    return found


def read_traces(path: Path, limit: int) -> Chosen:
    """At most `limit` samples of a JSONL file: whole groups, spread evenly over the file with its first and last.

    The file is gone through twice, a line in memory at a time. ValueError names the file, the line and what is wrong.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file. Give a run folder, the rollouts.jsonl of an RL run or the samples.jsonl of eval.py."
        )
    places: dict[str, list[int]] = {}
    unfinished = False
    for place, trace in _traces(path):
        if trace is None:
            unfinished = True
        else:
            places.setdefault(trace.group, []).append(place)
    if not places:
        raise ValueError(f"{path} holds no sample: it is empty.")
    groups = list(places)
    wanted = {place for group in _spread(groups, places, limit) for place in places[group][:limit]}
    chosen: dict[str, list[Trace]] = {}
    for place, trace in _traces(path, wanted):
        assert trace is not None, place
        chosen.setdefault(trace.group, []).append(trace)
    return Chosen(chosen, sum(map(len, places.values())), len(groups), unfinished)


def _spread(groups: Sequence[str], places: Mapping[str, Sequence[int]], limit: int) -> list[str]:
    if sum(len(places[group]) for group in groups) <= limit:
        return list(groups)
    count = min(len(groups), max(1, limit // max(len(places[group]) for group in groups)))
    if count == 1:
        return [groups[-1]]
    return [groups[round(i * (len(groups) - 1) / (count - 1))] for i in range(count)]


def _traces(path: Path, wanted: set[int] | None = None) -> Iterator[tuple[int, Trace | None]]:
    """(byte offset, trace) of every line, or of those at the offsets `wanted`; None for a last line without its end."""
    with path.open("rb") as file:
        place = 0
        for number, line in enumerate(file, start=1):
            start, place = place, place + len(line)
            if not line.strip() or (wanted is not None and start not in wanted):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    yield start, None
                    return
                raise ValueError(f"{path}, line {number} is not valid JSON: {error}.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} holds a {type(row).__name__}, not a JSON object.")
            try:
                trace = Trace.from_row(row)
            except RecursionError:
                raise ValueError(f"{path}, line {number} is nested too deeply.") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number} {error}.") from error
            yield start, trace


def _events(
    row: Mapping[str, Any], ids: list[int], steps: list[int], logprobs: list[Any] | None, num_steps: int
) -> Events | None:
    if row.get("events") is None:
        return None
    try:
        events = Events.from_row(row["events"])
        events.check(ids, steps, logprobs, num_steps)
    except ValueError as error:
        raise ValueError(f"has {error}") from None
    if max(events.token, default=0) > MOST_IDS:
        raise ValueError(f"has events with a token above {MOST_IDS:,}")
    return events


def _group(row: Mapping[str, Any], key: Sequence[Any]) -> str:
    if "task" not in row:
        return "/".join(map(str, key[:-1])) or "samples"
    if "entry" in row:
        return f"{row['task']} · {row['entry']}"
    return f"RL step {row['step']} · {row['task']}" if "step" in row else str(row["task"])


def _whole_numbers(row: Mapping[str, Any], name: str, most: int, least: int = 0) -> list[int]:
    values = row.get(name)
    if not isinstance(values, list):
        raise ValueError(f"has {'no ' if values is None else ''}{name}{'' if values is None else ' that is no list'}")
    for value in values:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"has {_short(value)} in {name}; whole numbers from {least:,} to {most:,} belong there")
    return values


def as_block_size(value: Any) -> int | None:
    """A value of a file as tokens a block; None where it cannot be that."""
    return value if type(value) is int and 0 < value <= MOST_STEPS else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _finite(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
