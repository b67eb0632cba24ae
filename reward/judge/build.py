"""A judge by its settings."""

from typing import Any

from reward.judge.judge import CachedJudge, Judge


def build_judge(judge: Judge | None = None, **settings: Any) -> CachedJudge:
    """A judge with a cache: the function `judge`, or the endpoint of `settings`, keys of a config's `judge` section
    (api, model, ...); it must answer now."""
    if judge is None:
        if not settings.get("api"):
            raise ValueError(
                "a judge needs judge.api, the URL of an OpenAI-compatible endpoint, or judge.local, a model"
            )
        from configs.schema import JudgeConfig  # here: not every process that grades needs a judge's libraries
        from reward.judge.api import ApiJudge

        endpoint = ApiJudge(JudgeConfig(**settings))
        endpoint.check()
        judge = endpoint
    return CachedJudge(judge)
