"""Memory that a config needs on one process's device and on its host, and the largest sizes that fit. Size functions
stand beside what they size; here they are summed.

`always`: on the device for the whole run. `phases`: on top of that in each phase. `host`: of one machine. All in
bytes, by part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.engine import TITLES
from configs.schema import DecodeConfig
from models.log_probs import keeps_fp32
from models.parallel import shared_heads
from models.spec import delete_insert_ids
from sample import SamplingConfig
from sample.drawing import positions_at_once
from sample.revision import event_room
from sample.slots import SlotKV, StepState
from sample.spans import CACHES, CachePolicy
from sample.unmask import choice_bytes
from train.algorithm.replay import TrainingSample
from train.distributed.sharding import BUCKET_ELEMENTS
from train.distributed.zero import REDUCE_BUCKET_ELEMENTS
from train.learner.optimizer import UpdateSettings
from train.memory.inputs import Inputs, revising_steps
from train.memory.sizes import ADAM_BYTES, BF16, FP32, Network, Precision, forward_bytes, micro_batch_bytes
from train.setup.decodings import UNSIZED_SLOTS, cache_mode, decodings
from train.setup.doors import reads_reference

USABLE = 0.9
"""Share of a device's memory that tensors may take: the rest is the driver's, and lost between blocks."""
_ROLLOUT_BYTES_A_TOKEN = (36, 104)
"""Of Python's lists on the host: a prompt's token (its id), a response's (id, step, log-probability)."""
_EXPERT_BYTES = 2
"""Of an expert's number (`sample.experts.Experts`)."""
_LARGEST_TOKENS, _LARGEST_SLOTS = 2**24, 2**16

Parts = dict[str, float]


@dataclass(frozen=True)
class Size:
    """A size that changes no result, and what limits it, for people."""

    number: int
    limit: str


_MOST_SLOTS = Size(1024, "more gain nothing")
_MOST_TOKENS = Size(32768, "more gain nothing")


def always(inputs: Inputs) -> Parts:
    """What stays on the device for the whole run."""
    width, trained_width = inputs.sampling_dtype.itemsize, BF16 if inputs.machine.half else FP32
    if inputs.models.kind == "eval":
        return {"weights": width * inputs.sampled_weights}
    parts: Parts = {
        "weights": _shards(inputs, trained_width * inputs.weights),
        "optimizer": _optimizer(inputs, inputs.trained),
        "mean of the weights": FP32 * inputs.trained if inputs.config.training.ema_decay else 0,
    }
    if inputs.models.kind == "sft" and reads_reference(inputs.config.training, "sft"):
        parts["frozen reference"] = _reference(inputs)
    if inputs.models.kind == "rl":
        copied = width != trained_width or (inputs.stage == 3 and inputs.processes > 1) or inputs.team > 1
        reference = _reference(inputs) if reads_reference(inputs.config.training) else 0
        parts |= {
            "sampler weights": width * inputs.sampled_weights if copied else 0,
            "frozen reference": reference,
            "value model": _shards(inputs, trained_width * inputs.value_parameters),
            "value optimizer": _optimizer(inputs, inputs.value_trained),
            "judge": _judge_width(inputs) * inputs.judge.elements if inputs.judge else 0,
        }
    return _present(parts)


def _reference(inputs: Inputs) -> int:
    width = BF16 if inputs.machine.half else FP32
    if inputs.reference is not None:
        return width * inputs.reference.parameters
    if inputs.adapters is None:
        return width * inputs.net.parameters
    return width * inputs.adapter_parameters if inputs.models.policy.adapters is not None else 0


def phases(inputs: Inputs, slots: int | None = None, tokens: int | None = None) -> dict[str, Parts]:
    """On the device on top of `always`, by phase, with so many slots and tokens a micro-batch."""
    rollout, evaluation = inputs.config.rollout, inputs.config.evaluation
    found: dict[str, Parts] = {}
    if inputs.models.kind != "sft":
        found["sampling"] = sampling(inputs, rollout, slots or chosen_slots(inputs, rollout).number)
    if inputs.judge is not None:
        found["judging"] = {"judge at work": _judging(inputs)}
    found |= _all_updates(inputs, tokens or chosen_tokens(inputs).number)
    if inputs.models.kind == "rl" and evaluation.eval_dataset:
        found["evaluation"] = sampling(inputs, evaluation, chosen_slots(inputs, evaluation).number)
    return found


def _all_updates(inputs: Inputs, tokens: int) -> dict[str, Parts]:
    """Of the value model, then of the policy."""
    tokens = max(tokens, inputs.unsplit_tokens)  # what cannot be split is run whole
    found: dict[str, Parts] = {}
    if inputs.value is not None:
        found |= updates(inputs, "value ", inputs.value, inputs.value_trained, tokens)
    if inputs.reference is not None:
        width = BF16 if inputs.machine.half else FP32
        found["reference, before the update"] = {"a pass": forward_bytes(inputs.reference, tokens, width)}
    if inputs.models.kind != "eval":
        found |= updates(inputs, "", inputs.net, inputs.trained, tokens)
    return found


def sampling(inputs: Inputs, decode: DecodeConfig, slots: int) -> Parts:
    """Slots, and the most that a prefill or a step takes; of several entries the largest. Features of pictures: of the
    prompts at work, and of all that a step of RL keeps for its updates."""
    entries = zip(decodings(decode), inputs.sizes_of(decode), strict=True)
    cache = CACHES[cache_mode(decode, inputs.models.policy.family)]
    moves = delete_insert_ids(inputs.models.policy)
    configs = [(SamplingConfig(**chosen, delete_insert_ids=moves), size) for chosen, size in entries]
    found = [_entry(inputs, config, cache, size, slots) for config, size in configs]
    largest = max(found, key=lambda parts: sum(parts.values()))
    kept = 0 if inputs.responses(decode) is None else inputs.config.rollout.num_task_per_step
    return _present(largest | {"pictures": features(inputs, slots + kept)})


def _entry(inputs: Inputs, config: SamplingConfig, cache: type[CachePolicy], block_size: int, slots: int) -> Parts:
    prompt, net, dtype = inputs.prompt_tokens, inputs.sampled_net, inputs.sampling_dtype
    capacity = prompt + config.max_new_tokens + block_size - 1
    kept = SlotKV.bytes(shared_heads(inputs.hf_config, inputs.team), slots, capacity, dtype) if cache.keeps_keys else 0
    forwards = [
        forward_bytes(net, forward.tokens, dtype.itemsize, forward.seen_tokens, inputs.adapted or ())
        for forward in cache.forwards(slots, block_size, prompt, capacity)
    ]
    positions = slots * block_size
    chosen = positions if config.output == "text" else min(positions, positions_at_once(net.vocab))
    if inputs.models.policy.family.noise == "uniform":  # the logits that condition the next step
        kept += dtype.itemsize * positions * net.vocab
    choosing = dtype.itemsize * positions * net.hidden + choice_bytes(config.rules(), chosen, net.vocab)
    room = event_room(config, block_size, config.max_new_tokens)
    return {"slots": kept + StepState.bytes(slots, capacity, room), "a step": max(*forwards, choosing)}


def features(inputs: Inputs, prompts: int) -> float:
    """Of the pictures of so many prompts; in an SFT of one."""
    if inputs.picture is None:
        return 0.0
    kept = 1 if inputs.models.kind == "sft" else prompts
    return float(kept * inputs.picture.tokens * inputs.net.hidden * inputs.sampling_dtype.itemsize)


def _tower(inputs: Inputs, head: bool, tokens: int) -> float:
    """What autograd keeps of the vision tower for the pictures of a micro-batch, where it is trained: ten of a layer's
    inputs and twice the inside of its MLP."""
    picture = inputs.picture
    if picture is None or not head or inputs.config.training.train_vision != "all":
        return 0.0
    pictures = max(1, tokens // max(1, inputs.unsplit_tokens))
    inside = 10 * picture.hidden + 2 * picture.inner
    checkpointing = inputs.config.training.gradient_checkpointing_enable
    kept = picture.layers * picture.hidden + inside if checkpointing else picture.layers * inside
    return float(pictures * picture.seen * kept * (BF16 if inputs.machine.half else FP32))


def updates(inputs: Inputs, whose: str, net: Network, trained: int, tokens: int) -> dict[str, Parts]:
    """An update's micro-batches and its optimizer's step. whose: "" for the policy, which has the head and adapters."""
    head, several = not whose, inputs.processes > 1
    precision = Precision(
        half=inputs.machine.half,
        checkpointing=inputs.config.training.gradient_checkpointing_enable,
        adapted=inputs.adapted if head else None,
        rank=inputs.adapters.rank if inputs.adapters and head else 0,
        head=head,
        fp32_logits=keeps_fp32(inputs.machine.kind),
    )
    own = 0 if inputs.offload else _sharded(inputs, trained, from_stage=2)
    gathered = (BF16 if inputs.machine.half else FP32) * net.largest_part if inputs.stage == 3 else 0
    bucket = FP32 * min(REDUCE_BUCKET_ELEMENTS if inputs.stage else BUCKET_ELEMENTS, trained)
    step = FP32 * (own if inputs.machine.kind == "cuda" else min(own, 2 * net.largest))
    passes = {
        "gradients": FP32 * own,
        "micro-batch": micro_batch_bytes(net, inputs.packing.scaled(tokens), precision),
        "between processes": bucket + gathered if several else 0,
        "pictures": features(inputs, inputs.config.rollout.num_task_per_step) + _tower(inputs, head, tokens),
    }
    return {
        f"{whose}update": _present(passes),
        f"{whose}optimizer": _present({"gradients": FP32 * own, "its step": step}),
    }


def host(inputs: Inputs) -> Parts:
    """On the host of rank 0, beside what Python and its libraries take: weights on their way to or from the disk, and
    the rollouts of a step (each process has them)."""
    sharded = inputs.stage > 0 and inputs.processes > 1
    local = max(1, inputs.processes // (inputs.config.experiment.num_node or 1))
    parts: Parts = {}
    if inputs.models.kind != "eval":
        whole = inputs.net.parameters + inputs.value_parameters
        saved = inputs.trained + inputs.value_parameters
        # Each process reads a part at a time and keeps its shard of it; DeepSpeed's masters are filled last
        loading = local * FP32 * inputs.net.largest_part if sharded and inputs.stage == 3 else 0
        if loading and inputs.machine.half and inputs.engine.startswith("ZeRO"):
            loading += local * FP32 * whole / inputs.processes
        saving = FP32 * saved if inputs.machine.kind == "cuda" or sharded else 0
        saving += ADAM_BYTES * (inputs.trained + inputs.value_trained) if sharded else 0
        if inputs.offload:
            held = ADAM_BYTES + 2 * FP32  # moments, masters and gradients
            parts["optimizer"] = local * held * (inputs.trained + inputs.value_trained) / inputs.processes
        parts["weights being loaded" if loading > saving else "checkpoint being written"] = max(loading, saving)
    if inputs.models.kind == "rl":
        rollout = inputs.config.rollout
        responses = local * rollout.num_task_per_step * rollout.num_response_per_task
        prompt, response = _ROLLOUT_BYTES_A_TOKEN
        tokens = inputs.config.training.max_prompt_len * prompt + rollout.max_new_tokens * response
        parts |= {"rollouts": responses * tokens, "samples": responses * samples_bytes(inputs.samples)}
        parts["replayed experts"] = responses * _experts_bytes(inputs)
    return _present(parts)


def _experts_bytes(inputs: Inputs) -> int:
    """Of the experts that training.replay_routing keeps of the longest response: of every position, of every denoising
    step's block (`sample.experts.Routing`), and of the tokens of its samples."""
    if not inputs.config.training.replay_routing:
        return 0
    rollout, net, b = inputs.config.rollout, inputs.net, inputs.models.blocks.trained
    window = rollout.max_new_tokens + b - 1
    steps = max(min(chosen["steps_per_block"] or b, b) for chosen in decodings(rollout))
    steps += revising_steps(rollout, inputs.models.policy, b)
    tokens = inputs.prompt_tokens + window + -(-window // b) * steps * b
    tokens += sum(sample.num_tokens for sample in inputs.samples)
    return _EXPERT_BYTES * (net.layers - net.dense_layers) * net.experts_per_token * tokens


def usable(inputs: Inputs) -> float:
    return USABLE * inputs.machine.memory_bytes


def total(inputs: Inputs, parts: Mapping[str, float]) -> float:
    """Bytes on the device in a phase with these parts."""
    return sum(always(inputs).values()) + sum(parts.values())


def too_large(inputs: Inputs) -> list[str]:
    """Names of the phases that do not fit."""
    return [name for name, parts in phases(inputs).items() if total(inputs, parts) > usable(inputs)]


def chosen_slots(inputs: Inputs, decode: DecodeConfig) -> Size:
    """Slots of a section: max_slots at most, and no more than fit on a GPU. What the user fixes in deterministic mode
    stays as it is."""
    most, unsized = inputs.responses(decode), Size(UNSIZED_SLOTS, "the most of a CPU or of deterministic mode")
    configured = Size(decode.max_slots, decode.key("max_slots")) if decode.max_slots else None
    size = _chosen(inputs, configured, unsized, _MOST_SLOTS, lambda: largest_slots(inputs, decode))
    if most is not None and most <= size.number and not inputs.config.experiment.deterministic:
        return Size(most, "the responses of a step")
    return size


def chosen_tokens(inputs: Inputs) -> Size:
    """Tokens of a micro-batch: as `chosen_slots`. What exceeds them and cannot be split is run whole."""
    given, unsized = inputs.config.training.max_tokens_per_microbatch, UpdateSettings.max_tokens
    configured = Size(given, "training.max_tokens_per_microbatch") if given else None
    fixed = Size(unsized, "the most of a CPU or of deterministic mode")
    return _chosen(inputs, configured, fixed, _MOST_TOKENS, lambda: largest_tokens(inputs))


def _chosen(inputs: Inputs, configured: Size | None, unsized: Size, most: Size, largest: Callable[[], int]) -> Size:
    """`configured`, else `most` or, where more than memory speaks for a fixed size, `unsized`; no more than fits
    on a GPU. Where nothing fits, which the memory report warns of, the least."""
    deterministic = inputs.config.experiment.deterministic
    if inputs.machine.kind != "cuda" or (deterministic and configured):
        return configured or unsized
    wanted, fits = configured or (unsized if deterministic else most), largest()
    if fits >= wanted.number or (configured and not fits):
        return wanted
    return Size(max(1, fits), f"what fits in {usable(inputs) / 2**30:.1f} GiB")


def keeps_slots(inputs: Inputs) -> bool:
    """Whether the rollout's slots, and the steps captured over them, fit beside every other phase of a run on a GPU:
    they then stay from step to step."""
    rollout, found = inputs.config.rollout, phases(inputs)
    if inputs.machine.kind != "cuda" or inputs.models.kind != "rl" or rollout.graphs == "off":
        return False
    kept = sum(found.pop("sampling").values())
    return all(total(inputs, parts) + kept <= usable(inputs) for parts in found.values())


def largest_slots(inputs: Inputs, decode: DecodeConfig | None = None) -> int:
    """The most slots with which sampling (the section `decode`, default the rollout's) fits; 0 if none do."""
    decode = decode or inputs.config.rollout
    room = usable(inputs) - sum(always(inputs).values())
    most = inputs.responses(decode) or _LARGEST_SLOTS
    return _largest(lambda slots: sum(sampling(inputs, decode, slots).values()) <= room, most)


def largest_tokens(inputs: Inputs) -> int:
    """The largest micro-batch with which the updates fit, in tokens; 0 if not even the longest sample does."""
    room = usable(inputs) - sum(always(inputs).values())

    def fits(tokens: int) -> bool:
        found = _all_updates(inputs, tokens).items()
        return all(sum(parts.values()) <= room for name, parts in found if "update" in name)

    found = _largest(fits, _LARGEST_TOKENS)
    return found if inputs.samples and found >= inputs.unsplit_tokens else 0


def samples_bytes(samples: Sequence[TrainingSample]) -> float:
    """Bytes of the arrays of a response's samples; those that several share count once."""
    arrays = {id(x): x.nbytes for sample in samples for x in vars(sample).values() if isinstance(x, np.ndarray)}
    return sum(arrays.values())


def _judging(inputs: Inputs) -> float:
    """Keys and values of the questions that are decoded at a time, and their prefill."""
    assert inputs.judge is not None
    settings, net, width = inputs.config.judge, inputs.judge.net, _judge_width(inputs)
    cached = net.key_value_elements * settings.parallel * settings.max_model_len * width
    return cached + forward_bytes(net, settings.parallel * (settings.max_model_len - settings.max_tokens), width)


def _judge_width(inputs: Inputs) -> int:
    return BF16 if inputs.machine.kind == "cuda" else FP32


def _sharded(inputs: Inputs, size: float, from_stage: int) -> float:
    """This process's shard of what ZeRO shards from a stage on."""
    return size / inputs.processes if inputs.stage >= from_stage else size


def _shards(inputs: Inputs, size: float) -> float:
    """Trained weights on this process's device; FSDP2 offloads them with the optimizer."""
    return 0 if inputs.offload and inputs.engine == TITLES["fsdp2"] else _sharded(inputs, size, from_stage=3)


def _optimizer(inputs: Inputs, trained: int) -> float:
    """Two moments; under bf16 the fp32 masters, under ZeRO the fp32 copy that its optimizer steps on."""
    if inputs.offload:
        return 0
    copy = FP32 if inputs.machine.half or (inputs.stage and inputs.processes > 1) else 0
    return _sharded(inputs, (ADAM_BYTES + copy) * trained, from_stage=2)


def _present(parts: Parts) -> Parts:
    return {name: size for name, size in parts.items() if size}


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 if none; what fits has smaller ones that fit."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
