"""What a config needs in memory on one process's device and on its host, and the largest sizes that fit there."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from configs import find
from configs.engine import TITLES
from configs.schema import Config, DecodeConfig
from models.checkpoint import empty_network, stored_elements
from models.families import Family, find_family
from models.folder import read_json, resolve_folder
from models.spec import CheckpointSpec
from runtime import ranks
from sample import Rollout, SamplingConfig
from sample.generation import PREFILL_MAX_TOKENS
from sample.unmask import choice_bytes
from train.algorithm.masking import Method
from train.algorithm.packing import pack, span_tokens
from train.algorithm.replay import Replayer, TrainingSample, replay
from train.distributed.kind import engine_kind, world_size, zero_stage
from train.distributed.sharding import BUCKET_ELEMENTS
from train.distributed.zero import REDUCE_BUCKET_ELEMENTS
from train.memory.sizes import (
    ADAM_BYTES,
    ADAPTED,
    BF16,
    FP32,
    Network,
    Packing,
    Precision,
    cache_bytes,
    forward_bytes,
    micro_batch_bytes,
    state_bytes,
)
from train.setup.doors import method_of, objective_of
from train.setup.models import adapters_of, value_spec_of
from train.setup.process import pick_device, precision
from train.setup.prompts import decodings

USABLE = 0.9
"""Share of a device's memory that tensors may take: the rest is the driver's, and lost between blocks."""
_ROLLOUT_BYTES_A_TOKEN = (36, 104)
"""Of Python's lists on the host: a prompt's token (its id), an answer's (id, step, log-probability)."""
_LARGEST_TOKENS = 2**24

Parts = dict[str, float]


@dataclass(frozen=True)
class Machine:
    """What a process computes on: "cuda" or "cpu", the bytes that it may take of its memory, and whether training is
    under bf16 autocast there."""

    kind: str
    memory_bytes: float
    half: bool

    @staticmethod
    def of(config: Config) -> "Machine":
        """GPUs of experiment.gpu_memory_gib where that is set, else the device that is here; of a CPU's memory, shared
        by the processes of the machine, what is free now."""
        if config.experiment.gpu_memory_gib:
            half = config.training.mixed_precision != "no"
            return Machine("cuda", config.experiment.gpu_memory_gib * 2**30, half)
        device = pick_device(config.model.device)
        half = precision(config, device) == "bf16"
        if device.type == "cuda":
            return Machine("cuda", torch.cuda.get_device_properties(device).total_memory, half)
        local = max(config.experiment.processes, ranks.local_world_size())
        return Machine("cpu", host_memory_bytes() / local, half)


def host_memory_bytes() -> float:
    """Free memory of this machine, or of its container where that is less; infinite where neither tells."""
    free = math.inf
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            free = 1024.0 * int(line.split()[1])
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


def network_of(folder: Path, model_base: str | None) -> Network:
    """Sizes of a checkpoint's network, from its config.json alone."""
    network = _empty(folder, model_base)
    return Network.of(network, network.config)


def _empty(folder: Path, model_base: str | None) -> PreTrainedModel:
    raw_config = read_json(folder / "config.json")
    return empty_network(find_family(raw_config, model_base, str(folder)), raw_config)


def longest_rows(
    config: Config, family: Family, method: Method, block_size: int, answer_tokens: int
) -> list[TrainingSample]:
    """The training samples of the longest response that a run may train: a prompt of training.max_prompt_len, a
    response that needs every denoising step."""
    training, rollout = config.training, config.rollout
    place = np.arange(answer_tokens)
    grid = place + (training.max_prompt_len if family.attention == "block" else 0)
    per_block = min(_first(rollout.steps_per_block, block_size), block_size)
    step = grid // block_size * per_block + grid % block_size * per_block // block_size
    response = Rollout(
        key=(0,),
        prompt_ids=[0] * training.max_prompt_len,
        canvas_ids=[0] * answer_tokens,
        canvas_step_map=(step - step[0] + 1).tolist(),
        canvas_logprobs=[0.0] * answer_tokens,
        num_response_tokens=answer_tokens,
        finish_reason="length",
        num_steps=int(step[-1] - step[0] + 1),
        weights_version=0,
    )
    replayer = Replayer(family.attention, family.logit_shift, 0, block_size)
    return replay(response, replayer, replace(training, post_num=0), method=method)


class Budget:
    """Bytes by part of a run of `kind` ("rl", "sft" or "eval") on rank 0, which holds the most.

    `always`: what stays on the device; `phases`: what is there besides in each phase; `host`: of one machine.
    stage: of ZeRO, 0 = every process holds the whole model, 2 = gradients and optimizer are shared out, 3 = weights
    too, and the sampler has a whole copy (FSDP2 is alike). answer_tokens: longest answer, SFT's.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        kind: str = "rl",
        *,
        stage: int | None = None,
        processes: int | None = None,
        machine: Machine | None = None,
        answer_tokens: int | None = None,
    ):
        self.config, self.kind = config, kind
        self.stage = zero_stage(config) if stage is None else stage
        self.engine = TITLES[engine_kind(config)] if stage is None else f"ZeRO-{stage}"
        self.processes = processes or world_size(config)
        self.machine = machine or Machine.of(config)
        spec = CheckpointSpec.read(folder, config.model.model_base)
        self.family = spec.family
        self.net = network_of(folder, config.model.model_base)
        self.block_size = self._block_size(folder, config.training.block_size or config.rollout.block_size)
        self.adapters = adapters = adapters_of(config, spec)
        self.adapted = frozenset(adapters.targets or ADAPTED) if adapters else None
        self.adapter_parameters = adapters.count(_empty(folder, config.model.model_base).model) if adapters else 0
        self.trained = self.adapter_parameters or self.net.parameters
        value_spec = value_spec_of(config, spec) if kind == "rl" else None
        self.value = network_of(value_spec.folder, config.model.model_base) if value_spec else None
        longest = answer_tokens or config.rollout.max_new_tokens
        self.rows: list[TrainingSample] = []
        if kind != "eval":
            method = method_of(config.training, "rl" if kind == "rl" else "sft")
            self.rows = longest_rows(config, self.family, method, self.block_size, longest)
        self.whole_responses = kind == "rl" and objective_of(config.training).needs.whole_responses
        self.row = max(self.rows, key=lambda row: (row.num_tokens, row.num_trained), default=None)
        self.packing = self._packing()

    def _block_size(self, folder: Path, said: object) -> int:
        of_checkpoint = read_json(folder / "config.json").get("block_size") or self.family.default_block_size
        size = _first(said, self.family.decoding.block_size or of_checkpoint)
        return min(size, self.config.rollout.max_new_tokens) if self.family.attention == "full" else size

    def _packing(self) -> Packing | None:
        """Of a micro-batch of one row."""
        if self.row is None:
            return None
        return Packing.of(pack([self.row], [0], torch.device("meta"), span_tokens(self.machine.kind)))

    @property
    def slots(self) -> int:
        rollout = self.config.rollout
        return rollout.max_slots if self.config.experiment.deterministic else min(rollout.max_slots, self.most_slots)

    @property
    def most_slots(self) -> int:
        """Answers of a step that one process decodes."""
        rollout = self.config.rollout
        if self.kind == "eval":
            return max(rollout.max_slots, 2**16)
        return -(-rollout.num_task_per_step * rollout.num_response_per_task // self.processes)

    @property
    def micro_batch_tokens(self) -> int:
        """Of the largest micro-batch: what exceeds the budget and cannot be split is run whole."""
        return max(self.config.training.max_tokens_per_microbatch, self.unsplit_tokens)

    @property
    def unsplit_tokens(self) -> int:
        """Of what no micro-batch splits: the longest sample, or all samples of the longest response."""
        tokens = [row.num_tokens for row in self.rows]
        return sum(tokens) if self.whole_responses else max(tokens, default=0)

    @property
    def sampler_width(self) -> int:
        """Bytes of a weight in sampling."""
        wanted = {"fp32": FP32, "bf16": BF16}.get(self.config.rollout.dtype)
        return wanted or (BF16 if self.machine.half else FP32)

    @cached_property
    def always(self) -> Parts:
        """What stays on the device for the whole run."""
        weights = self.net.parameters + self.adapter_parameters
        if self.kind == "eval":
            return {"weights": self.sampler_width * weights}
        parts = {
            "weights": self._shared(FP32 * weights, from_stage=3),
            "optimizer": self._optimizer(self.trained),
        }
        if self.kind == "rl":
            copied = self.sampler_width != FP32 or (self.stage == 3 and self.processes > 1)
            training = self.config.training
            frozen = training.kl_to == "reference" and training.beta > 0 and self.adapters is None
            parts |= {
                "sampler weights": self.sampler_width * weights if copied else 0,
                "frozen reference": (BF16 if self.machine.half else FP32) * self.net.parameters if frozen else 0,
                "value model": self._shared(FP32 * self._value_parameters(), from_stage=3),
                "value optimizer": self._optimizer(self._value_trained()),
                "judge": self._judge_weights(),
            }
        return _present(parts)

    def phases(self, slots: int | None = None, tokens: int | None = None) -> dict[str, Parts]:
        """What is on the device besides, by phase, with so many slots and tokens a micro-batch."""
        slots = self.slots if slots is None else slots
        tokens = self.micro_batch_tokens if tokens is None else tokens
        rollout, evaluation = self.config.rollout, self.config.evaluation
        if self.kind == "eval":
            return {"sampling": self._sampling(rollout, slots)}
        if self.kind == "sft":
            return self._updates("", self.net, self.trained, tokens)
        phases = {"sampling": self._sampling(rollout, slots)}
        if self.config.judge.local:
            phases["judging"] = _present({"judge at work": self._judge_work})
        if self.value is not None:
            phases |= self._updates("value ", self.value, self._value_trained(), tokens)
        phases |= self._updates("", self.net, self.trained, tokens)
        if evaluation.eval_dataset:
            phases["evaluation"] = self._sampling(evaluation, evaluation.max_slots)
        return phases

    def total(self, parts: Mapping[str, float]) -> float:
        return sum(self.always.values()) + sum(parts.values())

    @property
    def usable(self) -> float:
        return USABLE * self.machine.memory_bytes

    def too_large(self) -> list[str]:
        """Names of the phases that do not fit."""
        return [name for name, parts in self.phases().items() if self.total(parts) > self.usable]

    def largest_slots(self) -> int:
        """The most slots with which sampling fits; 0 if none do."""
        return _largest(lambda slots: self.total(self.phases(slots)["sampling"]) <= self.usable, self.most_slots)

    def largest_tokens(self) -> int:
        """The largest micro-batch with which the updates fit, in tokens; 0 if not even the longest row does."""

        def fits(tokens: int) -> bool:
            phases = self.phases(tokens=tokens)
            return all(self.total(parts) <= self.usable for name, parts in phases.items() if "update" in name)

        found = _largest(fits, _LARGEST_TOKENS)
        return found if self.rows and found >= self.unsplit_tokens else 0

    def host(self) -> Parts:
        """On the host of rank 0, beside what Python and its libraries take: weights on their way to or from the disk,
        and the rollouts of a step (each process has them)."""
        on_gpu = self.machine.kind == "cuda"
        zero = self.stage > 0 and self.processes > 1
        saved = (self.adapter_parameters or self.net.parameters) + self._value_parameters()
        trained = self.trained + self._value_trained()
        local = max(1, self.processes // (self.config.experiment.num_node or 1))
        whole_first = self.stage == 3 and zero  # on the host, where the ranks' shares are taken from it
        parts: Parts = {}
        if self.kind != "eval":
            loading = local * FP32 * (self.net.parameters + self._value_parameters()) if whole_first else 0
            saving = (FP32 * saved if on_gpu or zero else 0) + (ADAM_BYTES * trained if zero else 0)
            name = "weights being loaded" if loading > saving else "checkpoint being written"
            parts[name] = max(loading, saving)
        if self.kind == "rl":
            rollout = self.config.rollout
            responses = rollout.num_task_per_step * rollout.num_response_per_task
            prompt, answer = _ROLLOUT_BYTES_A_TOKEN
            tokens = self.config.training.max_prompt_len * prompt + rollout.max_new_tokens * answer
            parts |= {"rollouts": local * responses * tokens, "rows": local * responses * rows_bytes(self.rows)}
        return _present(parts)

    def _shared(self, size: float, from_stage: int) -> float:
        """This process's part of what ZeRO shares out from a stage on."""
        return size / self.processes if self.stage >= from_stage else size

    def _optimizer(self, trained: int) -> float:
        """Two moments; under ZeRO also the fp32 copy that its optimizer steps on."""
        copy = FP32 if self.stage and self.processes > 1 else 0
        return self._shared((ADAM_BYTES + copy) * trained, from_stage=2)

    def _value_parameters(self) -> int:
        return self.value.parameters + self.value.hidden if self.value else 0

    def _value_trained(self) -> int:
        """Its own head, if it is not the embedding, is frozen."""
        if self.value is None:
            return 0
        return self._value_parameters() - (0 if self.value.tied else self.value.vocab * self.value.hidden)

    def _capacity(self, decode: DecodeConfig, block_size: int) -> int:
        return self.config.training.max_prompt_len + decode.max_new_tokens + block_size - 1

    def _cached(self, decode: DecodeConfig) -> bool:
        return self.family.attention == "block" or decode.cache in ("prefix", "dual")

    def _slots(self, decode: DecodeConfig, slots: int, block_size: int | None = None) -> float:
        capacity = self._capacity(decode, block_size or self.block_size)
        cache = cache_bytes(self.net, slots, capacity, self.sampler_width) if self._cached(decode) else 0
        return cache + state_bytes(slots, capacity)

    def _sampling(self, decode: DecodeConfig, slots: int) -> Parts:
        """Slots, and the most that a prefill or a step takes; of lists (one way of decoding each) the largest."""
        sizes = decode.block_size if isinstance(decode.block_size, list) else [decode.block_size or self.block_size]
        widest, width = max(sizes), self.sampler_width
        capacity = self._capacity(decode, widest)
        prompt, positions = self.config.training.max_prompt_len, slots * widest
        if self.family.attention == "block":
            prefill = self._forward(max(prompt, min(slots * prompt, PREFILL_MAX_TOKENS)))
            forward = max(prefill, self._forward(2 * positions, capacity))
        else:
            forward = self._forward(slots * capacity)
        ways = [
            choice_bytes(SamplingConfig(**chosen).rules(), positions, self.net.vocab) for chosen in decodings(decode)
        ]
        choosing = width * positions * self.net.hidden + max(ways)
        return {"slots": self._slots(decode, slots, widest), "a step": max(forward, choosing)}

    def _forward(self, tokens: float, seen_tokens: float = 0.0) -> float:
        return forward_bytes(self.net, tokens, self.sampler_width, seen_tokens, self.adapted or ())

    def _updates(self, whose: str, net: Network, trained: int, tokens: int) -> dict[str, Parts]:
        """An update's micro-batches and its optimizer's step."""
        training, head = self.config.training, not whose
        adapters, adapted = (self.adapters, self.adapted) if head else (None, None)
        how = Precision(
            half=self.machine.half,
            checkpointing=training.gradient_checkpointing_enable,
            adapted=adapted,
            rank=adapters.rank if adapters else 0,
            repeated_keys=self.machine.kind != "cpu",
            head=head,
        )
        assert self.packing is not None
        mine = self._shared(trained, from_stage=2)
        gathered = FP32 * max(net.vocab * net.hidden, net.body / net.layers) if self.stage == 3 else 0
        bucket = (
            FP32 * min(REDUCE_BUCKET_ELEMENTS if self.stage else BUCKET_ELEMENTS, trained) if self.processes > 1 else 0
        )
        held = {"gradients": FP32 * mine}
        return {
            f"{whose}update": _present(
                held
                | {
                    "micro-batch": micro_batch_bytes(net, self.packing.scaled(tokens), how),
                    "between processes": bucket + gathered if self.processes > 1 else 0,
                }
            ),
            f"{whose}optimizer": _present(
                held | {"its step": FP32 * (mine if self.machine.kind == "cuda" else min(mine, 2 * net.largest))}
            ),
        }

    def _judge_folder(self) -> Path:
        return resolve_folder(find(str(self.config.judge.local)))

    def _judge_width(self) -> int:
        return BF16 if self.machine.kind == "cuda" else FP32

    def _judge_weights(self) -> float:
        return self._judge_width() * stored_elements(self._judge_folder()) if self.config.judge.local else 0

    @cached_property
    def _judge_work(self) -> float:
        """Keys and values of the questions that are answered at a time, and their prefill."""
        judge, raw = self.config.judge, read_json(self._judge_folder() / "config.json")
        heads = int(raw.get("num_attention_heads", 1))
        hidden = int(raw.get("hidden_size", 0))
        net = Network(
            parameters=0, body=0, largest=0, head_norms=False, tied=False,
            layers=int(raw.get("num_hidden_layers", 0)), hidden=hidden, inner=int(raw.get("intermediate_size", 0)),
            heads=heads, key_heads=int(raw.get("num_key_value_heads") or heads),
            head_size=int(raw.get("head_dim") or hidden // heads), vocab=int(raw.get("vocab_size", 0)),
        )  # fmt: skip
        width, asked = self._judge_width(), judge.parallel * (judge.max_model_len - judge.max_tokens)
        cached = net.key_value_elements * judge.parallel * judge.max_model_len * width
        return cached + forward_bytes(net, asked, width)


def rows_bytes(rows: Sequence[TrainingSample]) -> float:
    """Bytes of the arrays of a response's rows; those that rows share count once."""
    arrays = {id(x): x.nbytes for row in rows for x in vars(row).values() if isinstance(x, np.ndarray)}
    return sum(arrays.values())


def _every(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _first(value: object, default: int) -> int:
    """A number of the config, the largest of a list, the default where it says none."""
    return max(int(v) for v in _every(value)) if value is not None else int(default)


def _present(parts: Parts) -> Parts:
    return {name: size for name, size in parts.items() if size}


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 if none; what fits has smaller ones that fit."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
