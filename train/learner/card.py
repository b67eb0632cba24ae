"""The model card of a checkpoint: what it was trained from, on what and how, what it reached, how to load it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import resolved
from configs.schema import Config
from configs.sets import described
from configs.tree import flat
from models import DiffusionLM
from runtime.files import parsed
from runtime.report.recipe import about
from runtime.report.run_data import About
from runtime.run_config import public
from runtime.text import printable
from train.learner.checkpoint import KINDS, LIBRARY, RL

_FIGURES = ("accuracy", "stderr", "reward", "length", "tokens_per_forward", "tasks")
_METHODS = {
    "TraceRL": "TraceRL (arXiv:2509.06949): reinforcement learning on the model's own order of unmasking",
    "coupled": "coupled masks (arXiv:2506.20639)",
    "random_masking": "random masks (arXiv:2502.09992)",
}


@dataclass(frozen=True)
class Card:
    """What a run's cards say of its config. settings: flat, as others may see them."""

    command: str
    settings: Mapping[str, Any]
    told: About

    @staticmethod
    def of(config: Config, command: str) -> "Card":
        return Card(command, flat(public(resolved(config))), about(config, KINDS[command]))

    def text(self, model: DiffusionLM, metrics: Path, step: int) -> str:
        """The card as Markdown. metrics: the run's log, whose last evaluation it quotes. The same run gives the same
        card: no times, and no places of files but those that the config names."""
        base = str(self.settings["model.pretrained_model"])
        front = {"library_name": LIBRARY, "tags": ["diffusion-language-model", model.family, KINDS[self.command]]}
        if _is_hub_name(base):
            front |= {"base_model": base}
        rows = self._rows(base, model, step)
        table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
        title = printable(str(self.settings["experiment.project"]))
        return (
            f"---\n{_yaml(front)}---\n\n# {title}\n\n| | |\n|---|---|\n{table}\n\n"
            f"{_figures(metrics)}{self._config()}{_loading(model)}"
        )

    def _rows(self, base: str, model: DiffusionLM, step: int) -> dict[str, str]:
        settings, rl = self.settings, self.command == RL
        method, rank = str(settings["training.method"]), settings["lora.rank"]
        rows = {
            "base": base,
            "family": f"{model.family}"
            + (f", {model.block_size} tokens a block" if model.attention == "block" else ""),
            "data": described(settings["dataset.train_dataset" if rl else "dataset.optimization_data"]),
            "method": _METHODS.get(method, method) if rl else f"supervised fine-tuning, {method}",
            "steps": f"{step} {'RL steps' if rl else 'updates'}",
            "learning rate": f"{settings['optimizer.params.learning_rate']:g}",
            "adapters": f"rank {rank}, alpha {settings['lora.alpha']:g}" if rank else "none",
            "seed": str(settings["training.seed"]),
        }
        if rl:
            rows["objective"] = f"{settings['training.objective']}, advantage {settings['training.advantage']}"
        return rows

    def _config(self) -> str:
        """What differs from the recipe."""
        if not self.told.recipe:
            return ""
        changed = "".join(f"    {key}: {json.dumps(now, default=str)}\n" for key, (_, now) in self.told.changed.items())
        return printable(
            f"## Config\n\n`{self.told.recipe}`" + (f", with\n\n{changed}\n" if changed else ", as it is.\n\n")
        )


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _cell(value: str) -> str:
    return printable(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _yaml(front: Mapping[str, Any]) -> str:
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items())


def _figures(metrics: Path) -> str:
    """The last evaluation that the log has; nothing where it has none."""
    found: dict[str, dict[str, float]] = {}
    last = -1
    for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
        row = parsed(line) or {}
        for key, value in row.items():
            start, _, rest = key.partition("/")
            name, _, metric = rest.rpartition("/")
            if start != "eval" or not name or metric not in _FIGURES or value is None:
                continue
            if row["step"] > last:
                last, found = row["step"], {}
            found.setdefault(name, {})[metric] = value
    if not found:
        return ""
    head = f"| decoding | {' | '.join(_FIGURES)} |\n|{'---|' * (len(_FIGURES) + 1)}\n"
    rows = [
        f"| {_cell(name)} | {' | '.join(f'{entry[key]:.4g}' if key in entry else '' for key in _FIGURES)} |\n"
        for name, entry in found.items()
    ]
    return f"## Figures\n\nOn held-out tasks, after step {last} (stderr: over tasks):\n\n{head}{''.join(rows)}\n"


def _loading(model: DiffusionLM) -> str:
    """How to use the folder: here, in the original code, in engines that know the layout."""
    original = (
        "transformers with the base's own code (`trust_remote_code=True`, where its files are beside the weights)"
    )
    engines = "SGLang and LMDeploy read this layout. " if model.attention == "block" else ""
    return (
        "## Use\n\n    from models import load_model\n    from sample import Sampler, SamplingConfig\n\n"
        '    model = load_model("PATH", dtype="bfloat16", device="cuda")\n'
        "    sampler = Sampler(model, SamplingConfig(max_new_tokens=512))\n\n"
        f"The folder has the base's original layout: {original} loads it as well. {engines}A folder of adapters "
        "(`adapter_config.json`) is merged first: `dllm-export PATH -o OUT`.\n"
    )
