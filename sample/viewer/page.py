"""Writes one HTML page that plays how each response of a JSONL file was unmasked.

    python sample/get_trace_viewer.py runs/my_run -o trace.html
    python sample/get_trace_viewer.py samples.jsonl --tokenizer path/to/TraDo-4B-Instruct --block-size 4

The page needs no network. Reads a run folder, rollouts.jsonl of rl.py, samples.jsonl of eval.py (with step maps), or
lines of Rollout.to_json.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from configs import find
from models.families import find_family
from models.folder import read_json
from models.tokenizer import read_tokenizer
from runtime.files import atomic_write_text
from runtime.pages import page
from runtime.text import print_error, print_text
from sample.events import NO_CHOICE, Events
from sample.viewer.pictures import Thumbnails, picture_runs
from sample.viewer.token_texts import token_texts
from sample.viewer.trace import Chosen, Trace, as_block_size, read_traces, samples_of

if TYPE_CHECKING:
    from sample.viewer.forming import Forming

PARTS = Path(__file__).parent
KINDS = ("text", "special", "bytes", "id")


@dataclass(frozen=True)
class Origin:
    """What is known about the model that wrote the samples. notes: what is not, for the reader of the page."""

    tokenizer: PreTrainedTokenizerBase | None
    attention: Literal["block", "full"] | None
    block_size: int | None
    notes: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when the page is written, else 2 with one line on stderr."""
    options = _parse(arguments)
    try:
        path = samples_of(options.path)
        chosen = read_traces(path, options.limit)
        origin = find_origin(path, options.tokenizer, options.block_size)
        forming, unseen = _forming(path, chosen, origin)
        name = path.resolve().parent.name if (path.parent / "config.yaml").is_file() else path.name
        text = build_page(name, chosen, origin, options.block_size, Thumbnails(path.parent), forming)
        try:
            atomic_write_text(options.output, text)
        except OSError as error:
            raise ValueError(f"{options.output} cannot be written: {error.strerror}. Choose another -o.") from error
    except (ValueError, OSError) as error:
        print_error(str(error))
        return 2
    for note in (*origin.notes, *unseen, *left_out(chosen, forming)):
        print_error(note, "note: ")
    embedded = sum(map(len, chosen.groups.values()))
    print_text(f"{options.output}: {embedded:,} samples, {len(text.encode()) / 1e6:.1f} MB")
    return 0


def find_origin(path: Path, tokenizer: Path | None, block_size: int | None) -> Origin:
    """Tokenizer, attention and block size from the checkpoint `tokenizer` or, without one, from the run folder that
    `path` lies in (its ckpt/optimized, else its config.yaml's model). No code of a checkpoint is run.

    ValueError for a `tokenizer` that cannot be read; one that is only guessed is left out with a note.
    """
    rollout = _run_config(path).get("rollout")
    if block_size is None and isinstance(rollout, dict):
        block_size = as_block_size(rollout.get("block_size"))
    if tokenizer is not None:
        return _read_origin(tokenizer, block_size)
    reason = "Tokens are shown as ids"
    guesses = [path.parent / "ckpt" / "optimized"]
    section = _run_config(path).get("model")
    named = section if isinstance(section, dict) else {}
    model, model_base = named.get("pretrained_model"), named.get("model_base")
    guesses += [find(model)] if isinstance(model, str) else []
    for guess in guesses:
        if guess.is_dir():
            try:
                return _read_origin(guess, block_size, model_base)
            except ValueError as error:
                reason = f"Tokens are shown as ids, since {str(error).rstrip('.')}"
    return Origin(None, None, block_size, (f"{reason}: give the checkpoint's folder with --tokenizer.",))


def _read_origin(folder: Path, block_size: int | None, model_base: str | None = None) -> Origin:
    raw_config = read_json(folder / "config.json")
    if not raw_config:
        raise ValueError(f"{folder} has no config.json: --tokenizer takes a checkpoint's folder.")
    family = find_family(raw_config, model_base, str(folder))
    try:
        tokenizer = read_tokenizer(folder, family)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}).") from error
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer files (tokenizer.json or vocab files).")
    if block_size is None and family.attention == "block":
        own = raw_config.get("block_size") or raw_config.get("canvas_length")
        block_size = as_block_size(own) or family.default_block_size
    # canvases begin after the prompt too
    return Origin(tokenizer, family.attention if family.noise == "mask" else "full", block_size)


def _run_config(path: Path) -> dict[str, Any]:
    file = path.parent / "config.yaml"
    if not file.is_file():
        return {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:
        raise ValueError(f"{file}, beside the samples, is not valid YAML: {error}") from error
    return config if isinstance(config, dict) else {}  # type: ignore[return-value]


def _forming(path: Path, chosen: Chosen, origin: Origin) -> tuple["Forming | None", list[str]]:
    """What decodes the pictures that the samples are, by the image tokenizer of the run whose folder `path` lies in;
    None where there are none, or, with a note, where it cannot be read."""
    if not any(trace.is_drawn for traces in chosen.groups.values() for trace in traces):
        return None, []
    section = _run_config(path).get("model")
    named = section.get("vq_model_path") if isinstance(section, dict) else None
    if not isinstance(named, str) or origin.tokenizer is None:
        return None, ["Drawn pictures are shown as codes: the run's tokenizer or its model.vq_model_path is not known."]
    from sample.viewer.forming import Forming

    try:
        return Forming(find(named), text_ids_of(origin.tokenizer)), []
    except (ValueError, OSError) as error:
        return None, [f"Drawn pictures are shown as codes, since {str(error).rstrip('.')}."]


def text_ids_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """So many ids are text: what comes after them are codes of pictures."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def left_out(chosen: Chosen, forming: "Forming | None" = None) -> list[str]:
    """What of the file is not in the page, in sentences."""
    notes = []
    if forming is not None and forming.left_out:
        notes.append(f"{forming.left_out:,} drawn pictures are not shown as they form: --limit takes fewer samples.")
    embedded = sum(map(len, chosen.groups.values()))
    if embedded < chosen.num_samples:
        notes.append(
            f"Shows {embedded:,} of {chosen.num_samples:,} samples ({len(chosen.groups):,} of {chosen.num_groups:,} "
            "groups, spread over the file): --limit takes more."
        )
    if chosen.unfinished:
        notes.append("The last line was still being written and is left out.")
    return notes


def build_page(
    name: str,
    chosen: Chosen,
    origin: Origin,
    forced_block_size: int | None = None,
    thumbnails: Thumbnails | None = None,
    forming: "Forming | None" = None,
) -> str:
    """The page as text: see `pages.page`."""
    data = page_data(name, chosen, origin, forced_block_size, thumbnails, forming)
    return page(PARTS, f"{name} · trace", data, "viewer.js")


def page_data(
    name: str,
    chosen: Chosen,
    origin: Origin,
    forced_block_size: int | None = None,
    thumbnails: Thumbnails | None = None,
    forming: "Forming | None" = None,
) -> dict[str, Any]:
    """What viewer.js reads. Ids stand as indices into `vocabulary`, rows of [id, text, kind]; in a prompt -1 - i stands
    for picture i of `pictures`, rows of [positions, thumbnail or null]. A drawn sample has `frames`, rows of [step,
    picture]."""
    text_of = token_texts(origin.tokenizer)
    index: dict[int, int] = {}
    pictures: dict[tuple[int, str | None], int] = {}
    text_ids = None if origin.tokenizer is None else text_ids_of(origin.tokenizer)

    def indices(ids: Sequence[int]) -> list[int]:
        return [index.setdefault(token_id, len(index)) for token_id in ids]

    def shown(trace: Trace) -> list[int] | str:
        if isinstance(trace.prompt, str):
            return trace.prompt
        made: list[int] = []
        digests = iter(trace.images)
        for start, end, is_picture in picture_runs(trace.prompt, text_ids):
            if is_picture:
                digest = next(digests, "")
                picture = end - start, None if thumbnails is None else thumbnails[digest]
                made.append(-1 - pictures.setdefault(picture, len(pictures)))
            else:
                made += indices(trace.prompt[start:end])
        return made

    groups: list[dict[str, Any]] = []
    for title, traces in chosen.groups.items():
        prompts: list[list[int] | str] = []
        samples: list[dict[str, Any]] = []
        for trace in traces:
            if (prompt := shown(trace)) not in prompts:
                prompts.append(prompt)
            size = forced_block_size or trace.block_size or origin.block_size
            first = trace.first_block_tokens(size, origin.attention) if size else None
            sample = _sample(trace, indices(trace.ids), prompts.index(prompt), size, first)
            samples.append(sample | {"events": trace.events and _events(trace.events, indices)})
            if forming is not None and (frames := forming.frames(trace)):
                samples[-1]["frames"] = frames
        groups.append({"title": title, "prompts": prompts, "samples": samples})
    notes = [*origin.notes, *left_out(chosen, forming)]
    unplaced = any(sample["block"] is None for group in groups for sample in group["samples"])
    if unplaced and origin.attention != "full":
        notes.append("Where blocks begin is not known from the file: --block-size and --tokenizer say it.")
    vocabulary = [[token_id, *_text_and_kind(text_of(token_id))] for token_id in index]
    return {"name": name, "notes": notes, "vocabulary": vocabulary, "pictures": [*pictures], "groups": groups}


def _text_and_kind(token: tuple[str, str]) -> tuple[str, int]:
    return token[0], KINDS.index(token[1])


def _sample(trace: Trace, indices: list[int], prompt: int, size: int | None, first: int | None) -> dict[str, Any]:
    logprobs = trace.logprobs and [None if p is None else round(p, 4) for p in trace.logprobs]
    return {
        "name": trace.name,
        "prompt": prompt,
        "tokens": indices,
        "steps": trace.steps,
        "logprobs": logprobs,
        "block": None if first is None else [first, size],
        "length": trace.num_response_tokens,
        "num_steps": trace.num_steps,
        "finish": trace.finish_reason,
        "reward": trace.reward,
        "advantage": trace.advantage,
        "answer": trace.answer,
    }


def _events(events: Events, indices: Callable[[list[int]], list[int]]) -> list[list[Any]]:
    """Steps, places, tokens (-1 = masked again) and log-probabilities (None without a choice) of the writes; where
    tokens move also viewer.js's WRITE of each."""
    again = events.remasks() if events.source is None else events.masks()
    chosen = [action != NO_CHOICE for action in events.action]
    tokens = [-1 if again[i] else indices([token])[0] for i, token in enumerate(events.token)]
    logprobs = [
        round(p, 4) if mine and math.isfinite(p) else None for p, mine in zip(events.logprob, chosen, strict=True)
    ]
    columns: list[list[Any]] = [events.step, events.place, tokens, logprobs]
    if events.source is None or events.delete_insert_ids is None:
        return columns
    controls = {action: kind for kind, action in enumerate(events.delete_insert_ids, start=2)}
    written = zip(events.action, events.token, events.source, strict=True)
    return [*columns, [controls.get(action, int(action != token or source >= 0)) for action, token, source in written]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a run folder, rollouts.jsonl or samples.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=Path("trace.html"), help="the page (%(default)s)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="checkpoint with the tokenizer (default: the run folder's)"
    )
    parser.add_argument(
        "--block-size", type=_positive, metavar="TOKENS", help="of the blocks (default: the file's or the run's)"
    )
    parser.add_argument(
        "--limit", type=_positive, default=256, metavar="SAMPLES", help="samples in the page at most (%(default)s)"
    )
    return parser.parse_args(arguments)
