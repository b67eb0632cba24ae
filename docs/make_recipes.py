"""Writes docs/recipes.md from the headers of configs/*.yaml: python docs/make_recipes.py"""

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.load import REPOSITORY

PAGE = Path(__file__).with_name("recipes.md")
HEADER = """# Recipes

Every YAML of `configs/`, from their headers by `python docs/make_recipes.py`. A recipe fits the machine that it names
by the memory plan ([memory](memory.md)), its engine file included; a test checks each. On another machine
`dry_run=true` says what fits, and what never changes a result is sized by the machine. Only the tiny ones have been
trained here.

    python rl.py config=configs/rl_trado.yaml dry_run=true model.pretrained_model=/models/TraDo-4B-Instruct

"""
MODELS = {
    "The demo and its kin (a tiny model)": r"tiny",
    "LLaDA2": r"llada2",
    "DiffusionGemma": r"diffusion_gemma",
    "LLaDA-V (pictures)": r"lladav",
    "MMaDA (text and pictures)": r"mmada",
    "LLaDA": r"llada",
    "Dream, DiffuCoder": r"dream",
    "TraDo": r"trado",
    "SDAR": r"sdar",
}
"""Heading -> what the names of its recipes have; the first that fits."""
_MACHINE = re.compile(r"^# Machine: (.*?)(?:, for models of (up to .*))?\.$", re.MULTILINE)
_ASIDE = re.compile(
    r": (?:python|the same command|rl_\w+\.yaml says).*|[,:] (?:on every node|see docs/\S+)|\. .*|[.:]$"
)


@dataclass(frozen=True)
class Recipe:
    """A YAML: what runs it, what it does, the machine that it fits, and the sizes of models that this is said of."""

    name: str
    script: str
    does: str
    machine: str
    models: str


def recipe(path: Path) -> Recipe:
    """ValueError where the header has no line `# Machine: ...`."""
    text = path.read_text(encoding="utf-8")
    found = _MACHINE.search(text)
    if found is None:
        raise ValueError(f"{path}: no line '# Machine: ...' that ends with a full stop")
    said = re.sub(r"\n# ", " ", text[: found.start()].strip()).removeprefix("# ")
    return Recipe(path.stem, _script(path.stem), _ASIDE.sub("", said), found[1], found[2] or "")


def _script(name: str) -> str:
    if name.startswith("sft_"):
        return "train/sft.py"
    nodes = "multinode_" if "multinode" in name else ""
    return f"{nodes}eval.py" if name.endswith("_eval") else f"{nodes}rl.py"


def document() -> str:
    """The page."""
    recipes = [recipe(path) for path in sorted((REPOSITORY / "configs").glob("*.yaml"))]
    parts = [HEADER]
    for model, pattern in MODELS.items():
        of_model = [each for each in recipes if _model(each.name) == pattern]
        if of_model:
            parts.append(
                f"## {model}\n\n| recipe | command | what it does | machine | models |\n|---|---|---|---|---|\n"
            )
            parts += [_row(each) for each in sorted(of_model, key=lambda each: (each.script, each.name))]
            parts.append("\n")
    parts.append("## By machine\n\n| machine | recipes |\n|---|---|\n")
    by_machine = defaultdict(list)
    for each in recipes:
        by_machine[each.machine].append(_link(each.name))
    parts += [f"| {machine} | {', '.join(names)} |\n" for machine, names in sorted(by_machine.items(), key=_number)]
    return "".join(parts)


def _model(name: str) -> str:
    return next(pattern for pattern in MODELS.values() if re.search(pattern, name))


def _row(each: Recipe) -> str:
    return f"| {_link(each.name)} | `{each.script}` | {each.does} | {each.machine} | {each.models} |\n"


def _link(name: str) -> str:
    return f"[{name}](../configs/{name}.yaml)"


def _number(entry: tuple[str, list[str]]) -> list[int]:
    """Machines by their nodes and GPUs, the CPU first."""
    numbers = [int(number) for number in re.findall(r"\d+", entry[0])]
    return [0] if "CPU" in entry[0] else numbers if "node" in entry[0] else [1, *numbers]


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
