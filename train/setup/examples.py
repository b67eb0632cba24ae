"""Examples of fine-tuning -> ids -> training samples: the same packed samples as RL, from masks that noise or a given
trace draw."""

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from configs.schema import Config, TrainingConfig
from configs.sets import described
from configs.tree import get
from data.control import ControlTokens, encode
from data.pictures import PictureSource
from data.tasks import Example
from data.templates import Format, Writer
from models import DiffusionLM, Prompt
from models.families import Family
from models.spec import CheckpointSpec
from models.tokenizer import read_tokenizer
from sample import Rollout
from train.algorithm.canvases import Easel, canvas_samples
from train.algorithm.masking import Masking, Method, with_replaced
from train.algorithm.replay import Replayer, TrainingSample, replay
from train.setup.pictures import Eyes, usable
from train.setup.prompts import drop_over_long, require_known, tokenizer_of

logger = logging.getLogger(__name__)
TOO_LONG = "exceed training.max_prompt_len"


@dataclass(frozen=True)
class TokenizedExample:
    """One example as ids: prompt, response with its end id, and for `trace` the step of each response id. Ids of
    pictures (`picture_tokens`) are such in length alone, until they are `seen`; guarded: the prompt as it is tokenised,
    where it has pictures. rollout: the record of a response that a model sampled, which is replayed as it is. of: the
    label of its data set, where there are several. turn: the pass over its set that it is drawn in."""

    index: int
    prompt_ids: list[int]
    response_ids: list[int]
    step_map: list[int] | None
    guarded: str = ""
    images: tuple[PictureSource, ...] = ()
    picture_tokens: int = 0
    seen: Prompt | None = None
    rollout: Rollout | None = None
    of: str = ""
    turn: int = 0


def tokenise(
    examples: Sequence[Example],
    model: DiffusionLM,
    config: Config,
    method: Method,
    key: str = "dataset.optimization_data",
) -> list[TokenizedExample]:
    """Examples as ids, a conversation's prompt in turns of the model's family. The end id is appended where the
    response does not end with one. Empty and over-long prompts and examples that hold the mask token are dropped,
    over-long responses cut, all counted in warnings. key: that names them. ValueError where a step_map does not fit its
    response."""
    tokenizer, training = tokenizer_of(model), config.training
    writer, eyes = Writer(Format(model.family, system=config.dataset.system), tokenizer), Eyes.of(config, model)
    if config.dataset.system is not None and not all(example.turns for example in examples):
        logger.warning("dataset.system: no part of prompts that are texts (`prompt`), which stay as they are")
    _warn_of_raw_prompts(examples, tokenizer, model.spec.family, training, f"{key}={described(get(config, key))}")
    samples, cut, dropped = [], 0, Counter[str]()
    as_ids = functools.partial(_as_ids, writer=writer, eyes=eyes)
    for sample in usable([*enumerate(examples)], as_ids, lambda numbered: f"example {numbered[0]}", "SFT data"):
        i, prompt, response, steps = sample.index, sample.prompt_ids, sample.response_ids, sample.step_map
        if method.as_sampled and sample.rollout is None:
            steps = _checked_steps(steps, len(response), i, training.method)
        if sample.rollout is None and (not response or response[-1] not in model.eos_ids):
            response = [*response, model.end_of_response_id]
            steps = [*steps, max(steps, default=0) + 1] if steps is not None else None
        require_known(model, _ids_of(sample.rollout) or prompt + response, f"SFT data: example {i}")
        if why := _why_dropped(sample, response, model.mask_id, training.max_prompt_len):
            dropped[why] += 1
            continue
        if training.max_gen_length and len(response) > training.max_gen_length:
            cut += 1
            response = response[: training.max_gen_length]
        steps = steps[: len(response)] if steps is not None else None
        samples.append(replace(sample, response_ids=response, step_map=steps, of=examples[i].of))
    for why, count in dropped.items():
        if TOO_LONG in why:
            drop_over_long(f"SFT data: {count} of {len(examples)} {why}", config.dataset)
        else:
            logger.warning("SFT data: %d of %d %s: dropped", count, len(examples), why)
    if cut:
        logger.warning(
            "SFT data: %d responses are cut to training.max_gen_length=%s tokens", cut, training.max_gen_length
        )
    if not samples:
        if unseen := len(examples) - dropped.total():
            dropped["examples have pictures that cannot be used"] = unseen
        raise ValueError(
            f"no SFT example is left of {len(examples)}: {', '.join(f'{n} {why}' for why, n in dropped.items())}."
            + (" Raise it." if any(TOO_LONG in why for why in dropped) else "")
        )
    lengths = [(each.index, len(each.prompt_ids), len(each.response_ids)) for each in samples]
    _require_positions(lengths, len(examples), model.spec.positions, training)
    return samples


def _why_dropped(sample: TokenizedExample, response: Sequence[int], mask_id: int, max_prompt_len: int) -> str:
    """Why an example is not trained, in words that go on after a count; "" where it is."""
    if not sample.prompt_ids:
        return "prompts are empty"
    if len(sample.prompt_ids) - sample.picture_tokens > max_prompt_len:
        return f"prompts {TOO_LONG}={max_prompt_len}"
    return "examples hold the mask token" if mask_id in sample.prompt_ids or mask_id in response else ""


def check_lengths(examples: Sequence[Example], config: Config, spec: CheckpointSpec) -> None:
    """ValueError where texts exceed the positions of a model that is not loaded yet; `tokenise` counts pictures and end
    ids too. A text of no more bytes than that is not tokenised."""
    training, lengths = config.training, list[tuple[int, int, int]]()
    if training.max_gen_length and training.max_prompt_len + training.max_gen_length <= spec.positions:
        return
    tokenizer = read_tokenizer(spec.folder, spec.family)
    writer = Writer(Format(spec.family.name, system=config.dataset.system), tokenizer)
    for i, example in enumerate(examples):
        if example.trace is not None:
            P, R = len(example.trace["prompt_ids"]), int(example.trace["num_response_tokens"])
        elif example.images or tokenizer is None:
            continue
        else:
            texts = writer.example(example)
            if sum(len(text.encode()) for text in texts) <= spec.positions:
                continue
            P, R = (len(encode(tokenizer, text)) for text in texts)
        if training.max_prompt_len >= P:
            lengths.append((i, P, min(R, training.max_gen_length or R)))
    _require_positions(lengths, len(examples), spec.positions, training)


def _require_positions(
    lengths: Sequence[tuple[int, int, int]], examples: int, positions: int, training: TrainingConfig
) -> None:
    """ValueError where an example is too long for the model. lengths: (example, tokens of its prompt, of its
    response) of those that are trained, of so many examples."""
    over = [(P + R, i, P, R) for i, P, R in lengths if positions < P + R]
    if over:
        _, i, P, R = max(over)
        raise ValueError(
            f"SFT data: {len(over)} of {examples} examples exceed the {positions} positions of the model "
            f"(max_position_embeddings); the longest, example {i}, has {P} + {R} tokens: lower training.max_prompt_len="
            f"{training.max_prompt_len} (longer prompts are dropped) or training.max_gen_length="
            f"{training.max_gen_length} (longer responses are cut), or leave them out."
        )


def responses_of(training: TrainingConfig) -> int:
    """Responses of what an update of fine-tuning counts: of an example, or of a pair."""
    return 2 if training.sft_objective == "dpo" else 1


def tokenised(
    examples: Sequence[Example],
    model: DiffusionLM,
    config: Config,
    method: Method,
    key: str = "dataset.optimization_data",
) -> list[TokenizedExample]:
    """As `tokenise`; under DPO, where examples 2i and 2i + 1 are a pair, whole pairs alone that differ in their ids.
    ValueError where none is left."""
    samples = tokenise(examples, model, config, method, key)
    if responses_of(config.training) == 1:
        return samples
    sides = {sample.index: sample for sample in samples}
    pairs = [(sample, sides.get(sample.index + 1)) for sample in samples if sample.index % 2 == 0]
    whole = [(chosen, rejected) for chosen, rejected in pairs if rejected is not None]
    kept = [(chosen, rejected) for chosen, rejected in whole if chosen.response_ids != rejected.response_ids]
    if left_out := len(examples) // 2 - len(kept):
        logger.warning(
            "%s: %d of %d pairs are left out: a response of them is dropped, or the two are equal as trained",
            *(key, left_out, len(examples) // 2),
        )
    if not kept:
        raise ValueError(
            f"{key}: none of {len(examples) // 2} pairs is left: of {len(examples) // 2 - len(whole)} a response is "
            f"dropped, for what the warnings say, and of {len(whole)} the two are equal as trained, with "
            f"training.max_gen_length={config.training.max_gen_length}."
        )
    return [sample for pair in kept for sample in pair]


def _as_ids(numbered: tuple[int, Example], writer: Writer, eyes: Eyes) -> TokenizedExample:
    i, example = numbered
    if example.trace is not None:
        rollout = Rollout.from_dict({**example.trace, "key": (i,)})
        return TokenizedExample(i, rollout.prompt_ids, rollout.token_ids, rollout.step_map, rollout=rollout)
    prompt, response = writer.example(example)
    ids_of_response = encode(eyes.model.tokenizer, response)
    if not example.images:
        return TokenizedExample(i, encode(eyes.model.tokenizer, prompt), ids_of_response, example.step_map)
    ids, picture_tokens = eyes.outline(prompt, example.images)
    return TokenizedExample(i, ids, ids_of_response, example.step_map, prompt, example.images, picture_tokens)


def _ids_of(rollout: Rollout | None) -> list[int]:
    """Every id that a replay may show the model; none without a rollout."""
    if rollout is None:
        return []
    written = [] if rollout.events is None else rollout.events.token + rollout.events.action
    return [*rollout.prompt_ids, *rollout.canvas_ids, *rollout.suffix_ids, *written]


def see(samples: Sequence[TokenizedExample], eyes: Eyes) -> list[TokenizedExample]:
    """The examples with their pictures encoded, without those whose pictures cannot be used (`usable`): none, where
    there are no others."""

    def seen(sample: TokenizedExample) -> TokenizedExample:
        if not sample.images:
            return sample
        made = eyes.see(sample.guarded, sample.images)
        return replace(sample, prompt_ids=made.ids, seen=made)

    return usable(samples, seen, lambda sample: f"example {sample.index}", "SFT data", needed=False)


def _warn_of_raw_prompts(
    examples: Sequence[Example], tokenizer: Any, family: Family, training: TrainingConfig, name: str
) -> None:
    """Where the tokenizer has a chat template and no prompt is a turn of a chat: evaluation and RL then have other
    prompts than training."""
    if not tokenizer.chat_template or any(example.turns or example.images or example.trace for example in examples):
        return
    control = ControlTokens.of_tokenizer(tokenizer)
    if not any(control.in_responses.search(example.prompt) for example in examples):
        chat = f" --family {family.name}" if family.chat is not None else ""
        how = f"Write them with data/preprocess_sft.py{chat}, or give rows with messages"
        if responses_of(training) == 2:
            how = "Give prompt as a list of turns, or chosen and rejected as such"
        logger.warning(
            "%s: no prompt is a turn of a chat, but the tokenizer has a chat template, and "
            "RL and evaluation write turns. %s",
            *(name, how),
        )


def for_model(training: TrainingConfig, model: DiffusionLM, method: Method, block_size: int) -> TrainingConfig:
    """The settings with the block size in force, with all rows of a response and no recorded experts (rows_per_response
    and replay_routing are of RL), with targets that stand in the response (what edits threw away is no example), under
    DPO with pads that are counted within the response, and under full attention with one noisy copy of a block in
    semi-ar: each is a sequence of its own there, and dLLM-RL too has one a block."""
    alone = model.attention == "full" and method.one_copy
    is_dpo = responses_of(training) == 2
    return replace(
        training,
        block_size=block_size,
        rows_per_response=None,
        replay_routing=False,
        trained_events="last",
        normalization=TrainingConfig().normalization if is_dpo else training.normalization,
        mask_times_per_sample=1 if alone else training.mask_times_per_sample,
    )


def make_samples(
    sample: TokenizedExample, model: DiffusionLM, training: TrainingConfig, method: Method, epoch: int, window: int
) -> list[TrainingSample]:
    """The training samples of one example: masks drawn from (seed, epoch, example), or its own trace. A sampled
    response is replayed on its own canvas, as RL replays it.

    The response is padded to the end of its block (full attention: to `window` tokens), as a sampler would see it.
    Padding is masked; the first training.post_num pads are trained. Of a model with canvases: `canvas_samples`.
    """
    if method.canvases:
        return _canvas_samples(sample, model, training, method, epoch)
    b = training.block_size or model.spec.schedule_block_size
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, b)
    rng = np.random.default_rng([training.seed, epoch, sample.index])
    masks: Masking = method
    if training.replaced_p:
        masks = with_replaced(method, training.replaced_p, model.text_vocab_size, training.unmasked_p)
    key = (sample.index, epoch) if sample.of else (sample.index,)  # an update may have it from two passes
    if sample.rollout is not None:
        return replay(replace(sample.rollout, key=key), replayer, training, method=masks, pad_id=model.pad_id, rng=rng)
    P, R = len(sample.prompt_ids), len(sample.response_ids)
    pad = model.pad_id if model.pad_id is not None else model.end_of_response_id
    padding = -(P + R) % b if model.attention == "block" else max(0, window - R)
    traced = method.as_sampled
    steps = sample.step_map if traced and sample.step_map is not None else [1] * R
    canvas = Rollout(
        key=key,
        prompt_ids=sample.prompt_ids,
        canvas_ids=[*sample.response_ids, *[pad] * padding],
        canvas_step_map=[*steps, *[0 if traced else 1] * padding],
        canvas_logprobs=[0.0] * (R + padding),
        num_response_tokens=R,
        finish_reason="stop",
        num_steps=max(steps),
    )
    return replay(canvas, replayer, training, method=masks, pad_id=pad, rng=rng, prompt=sample.seen)


def _canvas_samples(
    sample: TokenizedExample, model: DiffusionLM, training: TrainingConfig, method: Method, epoch: int
) -> list[TrainingSample]:
    own = model.tokenizer.eos_token_id if model.tokenizer is not None else None
    easel = Easel(
        canvas_tokens=model.block_size,
        vocab_size=int(model.hf_config.vocab_size),
        fill_id=model.end_of_response_id if own is None else own,
        mask_id=model.mask_id,
    )
    key = (sample.index, epoch) if sample.of else (sample.index,)  # an update may have it from two passes
    rng = np.random.default_rng([training.seed, epoch, sample.index])
    ended = sample.response_ids[-1] in model.eos_ids
    return canvas_samples(key, sample.prompt_ids, sample.response_ids, easel, training, method, rng, ended)


def _checked_steps(steps: list[int] | None, tokens: int, index: int, method: str) -> list[int]:
    if steps is None or len(steps) != tokens or min(steps, default=1) < 0:
        got = "none" if steps is None else f"{len(steps)} entries, smallest {min(steps, default=0)}"
        raise ValueError(
            f"example {index}: training.method={method} needs a step_map of {tokens} steps >= 0, "
            f"one a response token; got {got}."
        )
    low = min(steps, default=0)
    return [s - low + 1 for s in steps]
