"""Writes docs/api.md from the signatures and docstrings of the public names: python docs/make_api.py"""

import ast
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)

PUBLIC = {
    "models": ("load_model", "DiffusionLM", "Prompt", "load_value_model"),
    "models.vision.seeing": ("Seeing",),
    "models.vision.images": ("open_image", "ImageFault"),
    "sample": ("SamplingConfig", "Sampler", "Rollout", "Events"),
    "sample.session": ("Session", "Update"),
    "sample.likelihood": ("chain", "bound"),
    "reward": ("grade_math", "grade_code", "Verdict", "build_reward", "Reward"),
    "data": ("load_tasks", "load_examples", "resolve_dataset", "render_prompt"),
    "data.templates": ("chat_family",),
    "train.start": ("rl", "Trained"),
    "generate": ("block_diffusion_generate",),
    "generate_images": ("generate_images",),
    "configs": ("load_config", "merge"),
    "train.algorithm.advantages": ("group_advantages",),
    "train.algorithm.replay": ("Replayer", "replay", "TrainingSample"),
    "train.algorithm.packing": ("MicroBatch", "pack", "within_budget"),
    "train.algorithm.objectives": ("TokenBatch", "objective", "clipped_surrogate"),
    "train.learner.policy": ("Policy",),
    "train.learner.updater": ("Updater",),
}
HEADER = """# Python API

Made from signatures and docstrings by `python docs/make_api.py`; a test checks that it is up to date. What is not on
this page may change without notice.
"""


def document() -> str:
    """The page."""
    parts = [HEADER]
    for module, names in PUBLIC.items():
        parts.append(f"## {module}\n")
        parts += [_entry(name, getattr(import_module(module), name)) for name in names]
    return "\n".join(parts)


def _entry(name: str, value: object) -> str:
    lines = [f"### {name}", "", *_signature(name, value), "", inspect.getdoc(value) or "", ""]
    if inspect.isclass(value):
        lines += [f"- `{field}`: {text}" for field, text in _fields(value)] + [""]
        for method, function in _methods(value):
            lines += [*_signature(f"{name}.{method}", function), "", inspect.getdoc(function) or "", ""]
    return "\n".join(lines).rstrip() + "\n"


def _fields(kind: type) -> Iterator[tuple[str, str]]:
    """Fields of a class whose docstring stands below them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    for item, below in itertools.pairwise(body):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(item, ast.AnnAssign) and is_text:
            yield ast.unparse(item.target), inspect.cleandoc(below.value.value).replace("\n", " ")


def _methods(kind: type) -> Iterator[tuple[str, object]]:
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, function


def _signature(name: str, value: object) -> list[str]:
    """The call, one parameter a line where it is long."""
    parameters = list(inspect.signature(value).parameters.values())  # type: ignore[arg-type]
    texts = [_parameter(parameter) for parameter in parameters if parameter.name != "self"]
    line = f"{name}({', '.join(texts)})"
    return ["    " + line] if len(line) <= 110 else [f"    {name}(", *(f"        {text}," for text in texts), "    )"]


def _parameter(parameter: inspect.Parameter) -> str:
    stars = (
        "**" if parameter.kind is parameter.VAR_KEYWORD else "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
    )
    default = parameter.default
    if default is parameter.empty:
        return stars + parameter.name
    plain = isinstance(default, str | int | float | bool | tuple | None)
    return f"{stars}{parameter.name}={default!r}" if plain else f"{stars}{parameter.name}=..."


if __name__ == "__main__":
    (HERE / "api.md").write_text(document(), encoding="utf-8")
