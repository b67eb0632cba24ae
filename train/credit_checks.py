"""What objective, rewards and advantages need of each other, and preferences of their keys, checked before a model is
loaded."""

import logging

from configs.schema import Config, TrainingConfig
from models.spec import CheckpointSpec
from reward.registry import named_functions
from train.algorithm.masking import METHODS, Method
from train.algorithm.objectives import TERMS, Needs
from train.idle import warn_of_idle_correction, warn_of_idle_credit
from train.setup.doors import objective_of, reads_reference
from train.setup.models import reference_spec_of
from train.setup.sources import require_as_written

logger = logging.getLogger(__name__)


def check_objective(config: Config, method: Method) -> None:
    """ValueError where the objective, or the rollout correction before it, needs what the run cannot give; a warning
    where it does not read a key of its terms that is set."""
    training, needs = config.training, objective_of(config.training).needs
    for name in ("rollout_correction", "rollout_rejection"):
        same = method.as_sampled and training.shrink == 1
        if getattr(training, name) != "none" and (not same or training.logp_old == "rollout"):
            raise ValueError(
                f"training.{name}={getattr(training, name)} compares the sampler's log-probabilities with recomputed "
                "ones at the same masks: it needs training.method=TraceRL, training.shrink=1, training.logp_old=auto."
            )
    by_token = [key for key, on in _credits_tokens(config).items() if on]
    if needs.one_advantage and by_token:
        raise ValueError(
            f"training.objective={training.objective} needs one advantage a response, and {by_token[0]} gives one a "
            "token: choose clip, reinforce, bgpo or spg, or leave that out."
        )
    _check_teacher(config, needs)
    warn_of_idle_correction(training)
    if needs.teacher:
        warn_of_idle_credit(config)
    elif training.kl_to == "reference" and not reads_reference(training):
        logger.warning("training.kl_to=reference has no effect: training.beta, the weight of the KL, is 0")
    plain, by_critic = TrainingConfig(), {"eps"} if config.model.value_base_model else set()
    for name in TERMS:
        value = getattr(training, name)
        if name not in {*needs.training, *by_critic} and value and value != getattr(plain, name):
            logger.warning("training.%s is not read by training.objective=%s", name, training.objective)


def _check_teacher(config: Config, needs: Needs) -> None:
    """ValueError where an objective that learns from a teacher has none, or more than that."""
    if not needs.teacher:
        return
    given = f"training.objective={config.training.objective}"
    if not config.model.reference_model:
        raise ValueError(f"{given} learns from a teacher: set model.reference_model to its checkpoint.")
    if by_token := [key for key, on in _credits_tokens(config).items() if on]:
        raise ValueError(f"{given} reads no advantage, and {by_token[0]} makes some: leave one of the two out.")


def check_credit(config: Config) -> None:
    """ValueError where keys of speed, parts of the reward and advantages do not go together."""
    reward, training = config.reward, config.training
    if reward.combine == "normalise" and len(named_functions(reward)) + reward.beside_verifier < 2:
        raise ValueError(
            "reward.combine=normalise needs several rewards: give reward.function a list, or set "
            "reward.beside_verifier=true."
        )
    if reward.speed_goal != "bonus" and reward.speed_weight == 0.0:
        raise ValueError(
            f"reward.speed_goal={reward.speed_goal} with reward.speed_weight=0 trains no speed: set the weight (1)."
        )
    if reward.speed_goal != "bonus" and training.max_accuracy < 1.0:
        raise ValueError(
            f"reward.speed_goal={reward.speed_goal} trains groups that are all right, and training.max_accuracy="
            f"{training.max_accuracy} drops them: set it to 1."
        )
    if reward.speed_goal == "bonus" and reward.min_speed_spread > 0.0:
        raise ValueError("reward.min_speed_spread needs a speed of its own: set reward.speed_goal=apart.")
    if training.whiten_advantages and config.model.value_base_model:
        raise ValueError(
            "training.whiten_advantages: a value model makes its advantages itself; leave one of the two out."
        )


_BOUNDS = ("elbo", "trace", "ar")
"""Methods of fine-tuning under which sum_j share_j logp_j is a response's log-likelihood, or a bound of it."""


def check_preference(config: Config, spec: CheckpointSpec) -> None:
    """ValueError where keys do not go with DPO, or the reference not with the model; a warning of those of DPO that
    nothing reads, and of masks that are no bound of the likelihood."""
    training, dataset, plain = config.training, config.dataset, Config()
    if training.sft_objective != "dpo":
        set_keys = {
            "model.reference_model": bool(config.model.reference_model),
            "training.dpo_beta": training.dpo_beta != plain.training.dpo_beta,
            "dataset.pairs_per_task": dataset.pairs_per_task != plain.dataset.pairs_per_task,
        }
        for key in (key for key, is_set in set_keys.items() if is_set):
            logger.warning("%s has no effect: set training.sft_objective=dpo", key)
        return
    given = "training.sft_objective=dpo"
    if dataset.traces_per_task:
        raise ValueError(
            f"{given} needs wrong responses too, which dataset.traces_per_task={dataset.traces_per_task} leaves out: "
            "set it to 0, and dataset.pairs_per_task to how many pairs of a task are wanted."
        )
    if training.replaced_p:
        raise ValueError(
            f"{given} compares likelihoods of responses, and training.replaced_p={training.replaced_p} trains tokens "
            "that stand already: set it to 0."
        )
    if (other := reference_spec_of(config, spec, "sft")) is not None:
        require_as_written(other)
    if training.normalization != plain.training.normalization:
        logger.warning("training.normalization is not read by %s: its loss is the mean over pairs", given)
    if training.method in METHODS and training.method not in _BOUNDS:
        logger.warning(
            "training.method=%s with %s: what it compares is no bound of the responses' likelihood; %s are",
            *(training.method, given, ", ".join(_BOUNDS)),
        )


def _credits_tokens(config: Config) -> dict[str, bool]:
    """What gives every token its own advantage, and whether the run has it."""
    return {
        f"model.value_base_model={config.model.value_base_model}": bool(config.model.value_base_model),
        "judge.mode=process": config.judge.mode == "process",
    }
