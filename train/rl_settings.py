"""What can be known to fail of an RL config before there is a model: its own mistakes come before those of the SFT that
may have to make one."""

import re

from configs.schema import Config, RolloutConfig, TrainingConfig
from train.checks import check_dataset, check_trackers, require_train_sets
from train.credit_checks import check_credit, check_objective
from train.figures import metric_names
from train.idle import warn_of_idle_bound, warn_of_idle_noise, warn_of_idle_revision, warn_of_idle_steps
from train.learner.checkpoint import BEST
from train.setup.decodings import check_decodings
from train.setup.doors import advantage_of, method_of
from train.setup.eval_sets import KEYS, eval_sets
from train.setup.process import pick_device
from train.setup.train_sets import KEY as TRAINED


def check_rl_settings(config: Config) -> None:
    """What can be known to fail of an RL config without its model, which an SFT may have to make first."""
    training, rollout = config.training, config.rollout
    advantage_of(training)
    method = method_of(training, "rl")
    if not method.as_sampled and training.logp_old == "rollout":
        raise ValueError(
            f"training.logp_old=rollout: the sampler's log-probabilities are of its own masks, and {training.method} "
            "draws others; set training.logp_old=auto."
        )
    if training.lower_p > training.upper_p:
        raise ValueError(f"training.lower_p={training.lower_p} exceeds training.upper_p={training.upper_p}.")
    _check_copies(training, rollout)
    if training.min_accuracy > training.max_accuracy:
        raise ValueError(
            f"training.min_accuracy={training.min_accuracy} exceeds training.max_accuracy={training.max_accuracy}."
        )
    if rollout.num_response_per_task < 2:
        raise ValueError(
            f"rollout.num_response_per_task={rollout.num_response_per_task}: a group of one has no advantage; "
            "sample at least 2 responses a task."
        )
    for name, values in rollout.parallel_lists().items():
        raise ValueError(
            f"{rollout.key(name)}={values}: the rollouts of a run are sampled in one way; lists are for eval.py and "
            "evaluation.*."
        )
    check_decodings(rollout, config.evaluation)
    _check_best(config)
    pick_device(config.model.device)
    check_objective(config, method)
    check_credit(config)
    check_trackers(config)
    for each in require_train_sets(config):
        check_dataset(config, each.source.name, TRAINED)
    for test in eval_sets(config, "rl"):
        check_dataset(config, test.source.name, KEYS["rl"])
    warn_of_idle_steps(config, method)
    warn_of_idle_noise(config.training, "rl")
    for section in (rollout, config.evaluation):
        warn_of_idle_revision(section)
        warn_of_idle_bound(section)


def _check_copies(training: TrainingConfig, rollout: RolloutConfig) -> None:
    """Which noisy copies are trained."""
    if training.rows_by != "uniform" and training.rows_per_response is None:
        raise ValueError(f"training.rows_by={training.rows_by} draws rows: set training.rows_per_response to how many.")
    if training.trained_events != "all" and rollout.edit_threshold is None and rollout.remask_threshold is None:
        raise ValueError(
            f"training.trained_events={training.trained_events}: nothing is overwritten; set rollout.edit_threshold or "
            "rollout.remask_threshold."
        )


def _check_metric(config: Config) -> None:
    """ValueError where no evaluation can have experiment.early_stopping_metric."""
    metric, evaluation = config.experiment.early_stopping_metric, config.evaluation
    sets = len(eval_sets(config, "rl"))
    known = ["auto", *metric_names(evaluation.num_response_per_task, sets, config.dataset.source_column)]
    if re.sub(r"\(.+\)$", "(SOURCE)", metric) not in known:
        raise ValueError(f"experiment.early_stopping_metric={metric}: choose from {', '.join(known)}.")


def _check_best(config: Config) -> None:
    if config.experiment.early_stopping is not None and not config.evaluation.eval_dataset:
        raise ValueError("experiment.early_stopping needs evaluations that get no better: set evaluation.eval_dataset.")
    if config.experiment.early_stopping is not None:
        _check_metric(config)
    if not config.experiment.keep_best:
        return
    if not config.evaluation.eval_dataset:
        raise ValueError("experiment.keep_best needs evaluations that find the best: set evaluation.eval_dataset.")
    for key in ("optimized_name", "optimized_value_name"):
        if getattr(config.model, key) == BEST:
            raise ValueError(f"model.{key}={BEST} is the name of keep_best's link under ckpt/: choose another.")
