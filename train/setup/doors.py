"""What the training section may name in place of a built-in: objective, advantage, masking method. Each is loaded and
tried on made-up data, before a model is."""

from dataclasses import fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from configs.schema import TrainingConfig
from runtime.doors import call_target, is_file_target, keyword_params, open_door
from train.algorithm.advantages import ADVANTAGES, Advantage, Floats, group_advantage
from train.algorithm.masking import METHODS, Canvas, Method, NoisyCopy, check_copies
from train.algorithm.objectives import OBJECTIVES, BoundObjective, TokenBatch, bind

Command = Literal["rl", "sft"]
TOLERANCE = 1e-3


def objective_of(training: TrainingConfig) -> BoundObjective:
    """What training.objective and training.objective_params name. ValueError where that is no objective."""
    function = open_door("training.objective", training.objective, OBJECTIVES)
    keyword_params("training.objective", function, 2, {})
    return bind(training.objective, function, training)


def reads_reference(training: TrainingConfig, command: Command = "rl") -> bool:
    """Whether the objective gets log-probabilities of the frozen reference: it needs a teacher, or training.kl_to says
    so, and its `beta` is not 0 where that is the weight of the objective's KL. Of SFT: whether it is DPO."""
    if command == "sft":
        return training.sft_objective == "dpo"
    objective = objective_of(training)
    if objective.needs.teacher:
        return True
    weighs_by_beta = "beta" in objective.needs.training
    return training.kl_to == "reference" and (not weighs_by_beta or objective.params["beta"] > 0.0)


def advantage_of(training: TrainingConfig) -> Advantage:
    """What training.advantage and training.advantage_params name. ValueError where that is no advantage."""
    key = f"training.advantage={training.advantage}"
    function = open_door("training.advantage", training.advantage, ADVANTAGES)
    params = keyword_params("training.advantage", function, 1, training.advantage_params)

    def advantage(reward_G: Floats) -> Floats:
        return call_target(key, function, reward_G, **params)

    advantage.__name__ = key
    return advantage


def method_of(training: TrainingConfig, command: Command) -> Method:
    """What training.method and training.method_params name. ValueError where it is no method of the command's."""
    key = f"training.method={training.method}"
    serving = {name: method for name, method in METHODS.items() if getattr(method, command)}
    if training.method in METHODS and training.method not in serving:
        other = "train/sft.py" if command == "rl" else "rl.py"
        raise ValueError(f"{key} is for {other}; {command.upper()} knows {', '.join(serving)}.")
    found = open_door("training.method", training.method, serving)
    method = found if isinstance(found, Method) else Method(found)
    if not getattr(method, command):
        raise ValueError(f"{key} is not for {command.upper()}: it is a Method(..., {command}=False).")
    params = keyword_params("training.method", method.copies, 3, training.method_params)
    if not is_file_target(training.method):
        return method

    def copies(canvas: Canvas, training: TrainingConfig, rng: np.random.Generator) -> list[NoisyCopy]:
        drawn = call_target(key, method.copies, canvas, training, rng, **params)
        try:
            return check_copies(drawn, canvas, method.next_token)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None

    return replace(method, copies=copies)


def check_doors(
    training: TrainingConfig, command: Command, attention: Literal["block", "full"], logit_shift: bool
) -> Method:
    """The masking method, after everything about objective, advantage and method that can be known to fail before a
    model is loaded: names, signatures, parameters, and what they make of a few made-up responses. ValueError, naming
    the key. attention, logit_shift: the model's."""
    method = method_of(training, command)
    if method.next_token and not logit_shift:
        names = [name for name, other in METHODS.items() if getattr(other, command) and not other.next_token]
        raise ValueError(
            f"training.method={training.method} needs a model that predicts the next token (Dream, DiffuCoder); choose "
            f"from {', '.join(names)}."
        )
    _check_bound(training, command, attention)
    try_method(method, training, attention)
    if command == "rl":
        try_objective(objective_of(training), reference=reads_reference(training))
        group_advantage(np.array([1.0, 0.0, 0.25, 0.0, 1.0]), advantage_of(training))
    return method


def _check_bound(training: TrainingConfig, command: Command, attention: Literal["block", "full"]) -> None:
    """ValueError where other tokens would be trained than those that elbo's weights count. DPO reads no
    training.normalization, and refuses training.replaced_p by itself."""
    if training.method != "elbo" or (command == "sft" and training.sft_objective == "dpo"):
        return
    if command == "sft" and training.replaced_p:
        raise ValueError(
            f"training.method=elbo weighs masked tokens, and training.replaced_p={training.replaced_p} trains those "
            "beside them too: set it to 0, or choose another method."
        )
    if training.normalization == "reference" and attention == "block" and training.post_num:
        raise ValueError(
            f"training.normalization=reference leaves all but training.post_num={training.post_num} pads of a round "
            "out after masks are drawn, so that the weights of training.method=elbo are wrong: choose constant, "
            "token_mean or response_mean, or training.post_num=0."
        )


def try_method(method: Method, training: TrainingConfig, attention: Literal["block", "full"]) -> None:
    """Draws the masks of three blocks of four tokens, the last two of them not trained."""
    block_C = np.arange(12) // 4
    step_C = np.array([1, 2, 1, 3, 4, 4, 5, 5, 7, 6, 6, 0])
    unit_C = block_C if attention == "block" else np.zeros_like(block_C)
    ids_C, trained_C = np.arange(1, 13) * (step_C > 0), (step_C > 0) & (np.arange(12) < 10)
    method(Canvas(ids_C, step_C, trained_C, block_C, unit_C, mask_id=0), training, np.random.default_rng(0))


def try_objective(objective: BoundObjective, reference: bool) -> None:
    """Runs an objective on five made-up responses of two groups. ValueError where the loss is not finite, has no
    gradient, or is not the sum of the losses of the batch's parts (micro-batches): the parts are single responses or
    copies where it needs whole ones, else every other token."""
    whole = _made_up(objective, reference)
    loss, _ = objective(whole)
    if not torch.isfinite(loss):
        raise ValueError(f"{objective.key} returned the loss {loss.item():g} for ordinary tokens: it must be finite.")
    trained = [x for x in (whole.logp, whole.entropy) if x is not None]
    slopes = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else (None,)
    given = [slope for slope in slopes if slope is not None]
    if not given or not all(slope.isfinite().all() for slope in given):
        raise ValueError(f"{objective.key}: the loss has no finite gradient with respect to batch.logp.")
    needs, of_copy = objective.needs, 3 * whole.response + whole.round
    part_N = (
        whole.response if needs.whole_responses else of_copy if needs.whole_copies else torch.arange(len(of_copy)) % 2
    )
    parts = [_part(whole, (part_N == i).nonzero()[:, 0]) for i in part_N.unique().tolist()]
    total = sum(float(objective(part)[0].detach()) for part in parts)
    if abs(total - loss.item()) > TOLERANCE * max(1.0, abs(total)):
        raise ValueError(
            f"{objective.key}: the loss of a batch, {loss.item():g}, is not the sum of the losses of its parts, "
            f"{total:g}: results would depend on training.max_tokens_per_microbatch and on the number of ranks. Sum "
            "over tokens, times batch.weight (which carries the normalisation), or declare what it needs: "
            "@objective(whole_copies=True), @objective(whole_responses=True), @objective(sums=...)."
        )


def _made_up(objective: BoundObjective, reference: bool) -> TokenBatch:
    response = torch.repeat_interleave(torch.arange(5), torch.tensor([3, 5, 2, 4, 6]))
    N, random = len(response), torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(N, generator=random)

    logp = uniform(-3.0, -0.1)
    tokens = TokenBatch(
        logp=logp.clone().requires_grad_(),
        logp_old=logp + uniform(-0.3, 0.3),
        logp_rollout=logp + uniform(-0.3, 0.3),
        logp_reference=logp + uniform(-0.3, 0.3) if reference else None,
        advantage=torch.tensor([1.0, -1.0, 0.5, -0.25, 2.0])[response],
        weight=torch.full((N,), 1.0 / N),
        kl_weight=torch.full((N,), 1.0 / N),
        response=response,
        round=torch.arange(N) % 3,
        place=torch.arange(N) // 2,
        share=uniform(0.5, 1.5),
        reward=(response % 2).float(),
        group=response // 3,
        entropy=uniform(0.1, 2.0).requires_grad_() if objective.needs.entropy else None,
    )
    if objective.needs.sums is None:
        return tokens
    with torch.no_grad():
        return replace(tokens, sums=objective.sums(tokens))


def _part(batch: TokenBatch, places: Tensor) -> TokenBatch:
    """The tokens at these places as a batch, its responses and groups numbered from 0."""
    picked = {
        field.name: getattr(batch, field.name)[places]
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    for name in ("response", "group"):
        picked[name] = picked[name].unique(return_inverse=True)[1]
    sums = {name: value[places] for name, value in batch.sums.items()} if batch.sums is not None else None
    return replace(batch, **picked, sums=sums)
