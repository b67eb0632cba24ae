"""The reward and the judge that a config names."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from configs import find
from configs.schema import Config, DecodeConfig
from data.tasks import Task
from reward import build_reward
from reward.base import DRAWN, Reward
from reward.code.sandbox import NO_ISOLATION, find_isolation
from reward.judge.api import ApiJudge
from reward.judge.build import build_judge
from reward.judge.judge import CachedJudge
from reward.judge.preference import JudgeReward
from train.setup.clip import Clip
from train.setup.local_judge import LocalJudge, prompt_tokens
from train.setup.process import pick_device


def reward_of(config: Config, data_type: str, *, evaluating: bool = False) -> Reward:
    """The reward that a config names, for tasks of this type. A function beside the verifier has no part in
    evaluating. ValueError, before anything starts, for what cannot work."""
    reward = config.reward
    if evaluating and reward.beside_verifier:
        reward = replace(reward, function=None, beside_verifier=False, weights={})
    if isinstance(reward.function, list):
        reward = replace(reward, function=[_found(target) for target in reward.function])
    elif reward.function:
        reward = replace(reward, function=_found(reward.function))
    similarity = Clip(reward.clip_model, pick_device(config.model.device)) if reward.clip_model else None
    return build_reward(reward, config.execute, data_type, _marks_of(config), similarity)


def with_own_function(config: Config, function: str) -> Config:
    """The config of a set with a reward of its own, path/to/file.py:name: that function alone grades it, in training
    and in evaluations."""
    return replace(config, reward=replace(config.reward, function=function, beside_verifier=False, weights={}))


def _found(target: str) -> str:
    """path/to/file.py:name with the file's path as it is found from here."""
    path, colon, name = target.rpartition(":")
    return f"{find(path)}:{name}" if colon else target


def _marks_of(config: Config) -> JudgeReward | None:
    """The judge's marks or comparisons that replace the verifier, if the config has them."""
    settings = config.judge
    judge = None if settings.mode == "process" else judge_of(config)
    if judge is None:
        return None
    return JudgeReward(
        judge,
        mode=settings.mode,  # type: ignore[arg-type]
        samples=settings.samples,
        max_prompt_tokens=prompt_tokens(settings),
    )


def evaluates_as_it_trains(config: Config, data_type: str) -> bool:
    """Whether the reward of training serves for evaluations on tasks of a type too."""
    return data_type == config.dataset.data_type and not config.reward.beside_verifier


def sandbox_row(config: Config, data_types: Collection[str]) -> dict[str, str]:
    """The banner's line about where programs run, and what this machine cannot hold of them; none for other rewards.
    data_types: of the tasks."""
    replaced = config.reward.function and not config.reward.beside_verifier
    judged = config.judge.mode != "process" and (config.judge.api or config.judge.local)
    if "code" not in data_types or replaced or judged:
        return {}
    return {"sandbox": str(find_isolation() or NO_ISOLATION)}


def check_tasks(reward: Reward, tasks: Sequence[Task], key: str, decode: DecodeConfig) -> None:
    """ValueError, with the key of their data set, where the reward cannot grade responses to these tasks that are
    sampled as section `decode` says."""
    drawn = {DRAWN: None} if decode.output == "image" else {}
    try:
        reward.check([task.columns | drawn | ({"pictures": task.pictures} if task.pictures else {}) for task in tasks])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def judge_of(config: Config) -> CachedJudge | None:
    """The judge that a config names, None where it names none. ValueError, before any model is loaded, for an endpoint
    that does not answer, a folder that is not there, or settings that leave no room for a question."""
    judge = config.judge
    if judge.api and judge.local:
        raise ValueError(f"judge.api and {judge.key('local')}={judge.local} are both set: keep one.")
    if judge.mode == "process" and not (judge.api or judge.local):
        raise ValueError("judge.mode=process needs a judge: set judge.api, a URL, or judge.local, a model.")
    if judge.api or judge.local:
        prompt_tokens(judge)
    if judge.api:
        endpoint = ApiJudge(judge)
        endpoint.check()
        return build_judge(endpoint)
    if judge.local:
        return build_judge(LocalJudge(judge.local, judge, pick_device(config.model.device)))
    return None


def step_judge_of(config: Config) -> CachedJudge | None:
    """The judge of process rewards, None without one."""
    if config.judge.mode != "process":
        return None
    if config.reward.speed_weight:
        raise ValueError("reward.speed_weight has no part in process rewards: set it to 0, or judge.mode=score.")
    return judge_of(config)
