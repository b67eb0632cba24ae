"""The reward and the judge that a config names."""

import os
from collections.abc import Sequence
from typing import Any

from configs import find
from configs.schema import Config
from data.tasks import Task
from reward import build_reward
from reward.base import Reward
from reward.judge.judge import CachedJudge, build_judge
from train.setup.judges import LocalJudge, prompt_tokens
from train.setup.models import pick_device


def reward_of(config: Config, data_type: str, *, evaluating: bool = False) -> Reward:
    """The reward that a config names, for tasks of this type. A function beside the verifier has no part in
    evaluating. ValueError, before anything starts, for what cannot work."""
    reward, execute = config.reward, config.execute
    function = None if evaluating and reward.beside_verifier else reward.function
    if function is not None and ":" in function:
        path, name = function.rsplit(":", 1)
        function = f"{find(path)}:{name}"
    cores = len(os.sched_getaffinity(0))
    return build_reward(
        function=function,
        beside_verifier=reward.beside_verifier and not evaluating,
        data_type=data_type,
        workers=min(execute.num_chunk, cores) if data_type == "code" else reward.workers,
        judge=None if config.judge.mode == "process" else judge_of(config),
        judge_mode=config.judge.mode,  # type: ignore[arg-type]
        judge_samples=config.judge.samples,
        judge_prompt_tokens=prompt_tokens(config.judge),
        **_named(reward, "timeout_seconds", "function_timeout_seconds"),
        **_named(execute, "all_or_nothing", "memory_gib", "allow_unsafe", "allow_forgeable"),
    )


def evaluates_as_it_trains(config: Config) -> bool:
    """Whether one reward serves training and the evaluations in between."""
    return config.evaluation.data_type == config.dataset.data_type and not config.reward.beside_verifier


def check_tasks(reward: Reward, tasks: Sequence[Task], key: str) -> None:
    """ValueError, with the key of their data set, where the reward cannot grade these tasks."""
    try:
        reward.check([task.columns for task in tasks])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def judge_of(config: Config) -> CachedJudge | None:
    """The judge that a config names, None where it names none. ValueError, before any model is loaded, for an endpoint
    that does not answer or a folder that is not there."""
    judge = config.judge
    if judge.api and judge.local:
        raise ValueError(f"judge.api={judge.api} and {judge.key('local')}={judge.local} are both set: keep one.")
    if judge.mode == "process" and not (judge.api or judge.local):
        raise ValueError("judge.mode=process needs a judge: set judge.api, a URL, or judge.local, a model.")
    if judge.api:
        names = ("api", "model", "api_key_variable", "temperature", "top_p", "max_tokens", "timeout_seconds")
        return build_judge(**_named(judge, *names, "attempts", "parallel"))
    if judge.local:
        return build_judge(LocalJudge(judge.local, judge, pick_device(config.model.device)))
    return None


def step_judge_of(config: Config) -> CachedJudge | None:
    """The judge of process rewards, None where the config asks for none."""
    if config.judge.mode != "process":
        return None
    if config.reward.speed_weight:
        raise ValueError("reward.speed_weight has no part in process rewards: set it to 0, or judge.mode=score.")
    return judge_of(config)


def _named(section: object, *names: str) -> dict[str, Any]:
    """Settings of a section of the config under their own names."""
    return {name: getattr(section, name) for name in names}
