"""Inputs of a memory plan: sizes of the networks, of the longest response, of the machine."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from transformers import PretrainedConfig

from configs import find
from configs.engine import TITLES
from configs.schema import Config, DecodeConfig, RolloutConfig
from models.checkpoint import empty_network
from models.families.base import PictureSizes
from models.folder import read_json, resolve_folder
from models.lora import Adapters
from models.model import NO_MASK
from models.spec import CheckpointSpec
from models.stored import stored_elements
from sample import Events, Rollout
from sample.config import moving_ids
from train.algorithm.canvases import Easel, canvas_samples
from train.algorithm.packing import pack, span_tokens
from train.algorithm.replay import Replayer, TrainingSample, replay
from train.algorithm.steps import Ints
from train.distributed.kind import engine_kind, offloads, world_size, zero_stage
from train.memory.machine import Machine
from train.memory.sizes import ADAPTED, Network, Packing
from train.setup.decodings import decodings
from train.setup.doors import method_of, objective_of
from train.setup.models import RunModels, adapters_of

_WIDTHS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Judge:
    """A local judge: elements of its weights, and the sizes of its network that config.json has."""

    elements: int
    net: Network

    @staticmethod
    def of(config: Config) -> "Judge | None":
        if not config.judge.local:
            return None
        folder = resolve_folder(find(config.judge.local))
        raw = read_json(folder / "config.json")
        heads, hidden = int(raw.get("num_attention_heads", 1)), int(raw.get("hidden_size", 0))
        net = Network(
            parameters=0, body=0, largest=0, head_norms=False, tied=False,
            layers=int(raw.get("num_hidden_layers", 0)), hidden=hidden, inner=int(raw.get("intermediate_size", 0)),
            heads=heads, key_heads=int(raw.get("num_key_value_heads") or heads),
            head_size=int(raw.get("head_dim") or hidden // heads), vocab=int(raw.get("vocab_size", 0)),
        )  # fmt: skip
        return Judge(stored_elements(folder), net)


@dataclass(frozen=True)
class Inputs:
    """Of a run, for rank 0, which holds the most.

    stage: of ZeRO; 0 = every process holds the whole model, 2 = gradients and optimizer are sharded, 3 = weights too,
    and the sampler has a whole copy (FSDP2 is alike). engine: its name. offload: masters, gradients and optimizer are
    in host memory, under FSDP2 so are the shards of the weights. net, value, reference: sizes of the networks of the
    policy, the value model and model.reference_model; hf_config: of the policy's. adapter_parameters: 0 without
    adapters. samples: training samples of the longest response; whole_responses: a micro-batch holds all samples of a
    response.
    """

    config: Config
    models: RunModels
    machine: Machine
    stage: int
    engine: str
    offload: bool
    processes: int
    net: Network
    hf_config: PretrainedConfig
    adapters: Adapters | None
    adapter_parameters: int
    value: Network | None
    reference: Network | None
    judge: Judge | None
    samples: tuple[TrainingSample, ...]
    whole_responses: bool

    @staticmethod
    def of(
        config: Config,
        models: RunModels,
        *,
        stage: int | None = None,
        processes: int | None = None,
        machine: Machine | None = None,
        response_tokens: int | None = None,
    ) -> "Inputs":
        """stage, processes, machine: the config's where None. response_tokens: of the longest response of an SFT."""
        network = empty_network(models.policy.family, models.policy.raw)
        value = empty_network(models.value.family, models.value.raw) if models.value else None
        other = empty_network(models.reference.family, models.reference.raw) if models.reference else None
        adapters = models.policy.adapters if models.kind == "eval" else adapters_of(config, models.policy)
        tokens = response_tokens or config.rollout.max_new_tokens
        return Inputs(
            config=config,
            models=models,
            machine=machine or Machine.of(config),
            stage=zero_stage(config) if stage is None else stage,
            engine=TITLES[engine_kind(config)] if stage is None else f"ZeRO-{stage}",
            offload=stage is None and offloads(config),
            processes=processes or world_size(config),
            net=Network.of(network, network.config.get_text_config()),
            hf_config=network.config.get_text_config(),
            adapters=adapters,
            adapter_parameters=adapters.count(network.model) if adapters else 0,
            value=Network.of(value, value.config) if value is not None else None,
            reference=Network.of(other, other.config) if other is not None else None,
            judge=Judge.of(config) if models.kind == "rl" else None,
            samples=() if models.kind == "eval" else tuple(longest_samples(config, models, tokens)),
            whole_responses=models.kind == "rl" and objective_of(config.training).needs.whole_responses,
        )

    @property
    def picture(self) -> PictureSizes | None:
        """The largest picture that a prompt may have; None where pictures are no features."""
        return picture_of(self.models)

    @property
    def prompt_tokens(self) -> int:
        """Of the longest prompt: its text and a picture."""
        return longest_prompt(self.config, self.models)

    @property
    def frozen(self) -> int:
        """Parameters of vision that are not trained."""
        return {"false": self.net.vision, "projector": self.net.tower}.get(self.config.training.train_vision, 0)

    @property
    def adapted(self) -> frozenset[str] | None:
        """Names of the linear layers with adapters; None where all weights are trained."""
        if self.adapters is None:
            return None
        return frozenset(name.rpartition(".")[2] for name in self.adapters.targets or ADAPTED)

    @property
    def weights(self) -> int:
        """Of the policy, adapters among them."""
        return self.net.parameters + self.adapter_parameters

    @property
    def trained(self) -> int:
        return self.adapter_parameters or self.net.parameters - self.frozen

    @property
    def value_parameters(self) -> int:
        return self.value.parameters + self.value.hidden if self.value else 0

    @property
    def value_trained(self) -> int:
        """The head that the value model does not use is frozen, if it is not the embedding, and so is its vision."""
        if self.value is None:
            return 0
        unused = 0 if self.value.tied else self.value.vocab * self.value.hidden
        return self.value_parameters - unused - self.value.vision

    @property
    def sampling_dtype(self) -> torch.dtype:
        """Of the weights that sample."""
        configured = _WIDTHS.get(self.config.rollout.dtype)
        return configured or (torch.bfloat16 if self.machine.half else torch.float32)

    def responses(self, decode: DecodeConfig) -> int | None:
        """Responses of a step that one process decodes; None = as many as there are tasks for."""
        rollout = self.config.rollout
        if self.models.kind == "eval" or decode is self.config.evaluation:
            return None
        samplers = self.processes // self.team
        return -(-rollout.num_task_per_step * rollout.num_response_per_task // samplers)

    @property
    def team(self) -> int:
        """Processes that sample as one."""
        return 1 if self.models.kind == "sft" else self.config.rollout.tensor_parallel_size

    @property
    def sampled_weights(self) -> float:
        """Elements of the model that this process samples with: all, or its part of one that a team shares, the
        embedding whole."""
        whole = self.net.vocab * self.net.hidden
        return self.weights if self.team == 1 else whole + (self.weights - whole) / self.team

    @property
    def sampled_net(self) -> Network:
        """Sizes of that model."""
        net, size = self.net, self.team
        return replace(net, heads=net.heads // size, key_heads=net.key_heads // size, inner=net.inner // size)

    @property
    def unsplit_tokens(self) -> int:
        """Of what no micro-batch splits: the longest sample, or all samples of the longest response."""
        tokens = [sample.num_tokens for sample in self.samples]
        return sum(tokens) if self.whole_responses else max(tokens, default=0)

    @cached_property
    def packing(self) -> Packing:
        """Of a micro-batch of the longest sample."""
        longest = max(self.samples, key=lambda sample: (sample.num_tokens, sample.num_trained))
        if self.models.policy.family.noise == "uniform":  # encoder and decoder both read the text; masks of the canvas
            canvas = self.models.blocks.trained
            tokens = longest.num_tokens
            return Packing(tokens, longest.num_trained, 2 * tokens - canvas, 2 * canvas * tokens)
        if self.machine.kind == "cuda":  # FlexAttention: each key once
            return Packing(longest.num_tokens, longest.num_trained, longest.num_tokens, 0)
        return Packing.of(pack([longest], [0], torch.device("meta"), span_tokens(self.machine.kind)))

    def sizes_of(self, decode: DecodeConfig) -> tuple[int, ...]:
        """Tokens of a block in every entry of a section."""
        blocks = self.models.blocks
        return blocks.evaluated if decode is self.config.evaluation else blocks.sampled


def picture_of(models: RunModels) -> PictureSizes | None:
    """The largest picture that the models' family takes as features; None where it takes none."""
    spec = models.policy
    return spec.family.picture_sizes(spec.raw) if spec.family.picture_sizes is not None else None


def longest_prompt(config: Config, models: RunModels) -> int:
    """Tokens of a prompt of training.max_prompt_len with a picture, within the model's positions."""
    picture, text = picture_of(models), config.training.max_prompt_len
    return text if picture is None else max(text, min(text + picture.tokens, models.policy.positions))


def longest_samples(config: Config, models: RunModels, response_tokens: int) -> list[TrainingSample]:
    """The training samples of the longest response that a run may train: a prompt of training.max_prompt_len and
    pictures, a response that needs every denoising step."""
    prompt_tokens = longest_prompt(config, models)
    training, family, block_size = config.training, models.policy.family, models.blocks.trained
    if family.noise == "uniform":
        easel = Easel(block_size, 1, 1, NO_MASK)
        given = [0] * prompt_tokens, [1] * response_tokens, easel, replace(training, mask_times_per_sample=1)
        return canvas_samples((0,), *given, method_of(training, "sft"), np.random.default_rng(0), ended=True)
    place = np.arange(response_tokens)
    grid = place + (prompt_tokens if family.attention == "block" else 0)
    steps = [chosen["steps_per_block"] or block_size for chosen in decodings(config.rollout)]
    per_block = min(max(steps), block_size)
    step = grid // block_size * per_block + grid % block_size * per_block // block_size
    response = Rollout(
        key=(0,),
        prompt_ids=[0] * prompt_tokens,
        canvas_ids=[1] * response_tokens,  # any id but the mask's
        canvas_step_map=(step - step[0] + 1).tolist(),
        canvas_logprobs=[0.0] * response_tokens,
        num_response_tokens=response_tokens,
        finish_reason="length",
        num_steps=int(step[-1] - step[0] + 1),
        weights_version=0,
    )
    more = revising_steps(config.rollout, models.policy, block_size)
    response = replace(response, events=_edits(step, grid // block_size, config.rollout, more))
    replayer = Replayer(family.attention, family.logit_shift, 0, block_size)
    method = method_of(training, "rl" if models.kind == "rl" else "sft")
    return replay(response, replayer, replace(training, post_num=0, replay_routing=False), method=method)


def revising_steps(rollout: RolloutConfig, spec: CheckpointSpec, block_size: int) -> int:
    """Steps that edits and remasking may add to a block."""
    if rollout.edit_threshold is None and rollout.remask_threshold is None:
        return 0
    if moving_ids(rollout.edit_threshold, spec) is not None:
        return block_size + rollout.max_post_steps
    return rollout.max_post_steps + (0 if rollout.remask_threshold is None else rollout.remask_budget)


def _edits(step_C: Ints, block_C: Ints, rollout: RolloutConfig, more: int) -> Events | None:
    """The writes of a response whose blocks all take the steps that edits and remasking may add, each of which writes
    one token; None where both are off."""
    if rollout.edit_threshold is None and rollout.remask_threshold is None:
        return None
    later_C = (block_C - block_C[0]) * more + step_C - step_C[0] + 1
    rows = [(int(step), place, 1, 1, 0.0) for place, step in enumerate(later_C)]
    for block in np.unique(block_C):
        first, last = int(np.flatnonzero(block_C == block)[0]), int(later_C[block_C == block].max())
        rows += [(last + number, first, 1, 1, 0.0) for number in range(1, more + 1)]
    return Events.of(rows)
