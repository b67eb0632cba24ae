"""What objective, rewards and advantages need of each other, checked before a model is loaded."""

import logging

from configs.schema import Config, TrainingConfig
from reward.registry import named_functions
from train.algorithm.masking import Method
from train.algorithm.objectives import TERMS, Needs
from train.setup.doors import objective_of

logger = logging.getLogger(__name__)


def check_objective(config: Config, method: Method) -> None:
    """ValueError where the objective, or the rollout correction before it, needs what the run cannot give; a warning
    where it does not read a key of its terms that is set."""
    training, needs = config.training, objective_of(config.training).needs
    for name in ("rollout_correction", "rollout_rejection"):
        if getattr(training, name) != "none" and (not method.as_sampled or training.logp_old == "rollout"):
            raise ValueError(
                f"training.{name}={getattr(training, name)} compares the sampler's log-probabilities with recomputed "
                "ones at the same masks: it needs training.method=TraceRL and training.logp_old=recompute."
            )
    by_token = [key for key, on in _credits_tokens(config).items() if on]
    if needs.one_advantage and by_token:
        raise ValueError(
            f"training.objective={training.objective} needs one advantage a response, and {by_token[0]} gives one a "
            "token: choose clip, reinforce, bgpo or spg, or leave that out."
        )
    _check_teacher(config, needs)
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


def _credits_tokens(config: Config) -> dict[str, bool]:
    """What gives every token its own advantage, and whether the run has it."""
    return {
        f"model.value_base_model={config.model.value_base_model}": bool(config.model.value_base_model),
        "judge.mode=process": config.judge.mode == "process",
    }
