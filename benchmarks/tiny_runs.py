"""Small runs of every kind for benchmarks/kill.py and benchmarks/damage.py, and what makes two of them equal: the tiny
task, a random model of two layers of width 32 that is made here, fp32, one thread a process,
`experiment.deterministic=true`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from models import load_model

ROOT = Path(__file__).resolve().parents[1]
SAVE_EVERY, EVAL_EVERY = 2, 3
RL = f"""
experiment: {{save_every: {SAVE_EVERY}, eval_every: {EVAL_EVERY}, deterministic: true, threads: 1}}
dataset: {{train_dataset: tiny_train, data_type: general, template: plain, max_tasks: 64}}
model: {{pretrained_model: "{{folder}}/model", device: cpu}}
rollout: {{num_task_per_step: 8, num_response_per_task: 4, max_new_tokens: 15, block_size: 4, max_slots: 16,
  threshold: 0.4}}
reward: {{function: "{{folder}}/reward.py:share_of_digits", workers: 1}}
training: {{gradient_accumulation_steps: 1, batch_size_lm: 32, num_train_epochs: 2, max_tokens_per_microbatch: 512,
  mixed_precision: "no"}}
optimizer: {{params: {{learning_rate: 1.0e-3}}}}
evaluation: {{eval_dataset: tiny_test, data_type: general, max_tasks: 16, max_slots: 16, max_new_tokens: 15,
  block_size: 4, threshold: 0.4, top_k: [0, 1]}}
"""
SFT = f"""
experiment: {{save_every: 1, save_every_updates: {SAVE_EVERY}, deterministic: true, threads: 1}}
dataset: {{optimization_data: tiny_sft, max_tasks: 40}}
model: {{pretrained_model: "{{folder}}/model", device: cpu}}
training: {{method: semi-ar, mask_times_per_sample: 2, gradient_accumulation_steps: 1, batch_size_lm: 8,
  max_tokens_per_microbatch: 512, mixed_precision: "no"}}
optimizer: {{params: {{learning_rate: 1.0e-3}}}}
lr_scheduler: {{params: {{min_lr_scale: 0.1}}}}
"""
EVAL = """
experiment: {deterministic: true, threads: 1}
dataset: {eval_dataset: tiny_test, data_type: general, template: plain, max_tasks: 48}
model: {pretrained_model: "{folder}/model", device: cpu}
rollout: {num_response_per_task: 4, max_slots: 16, max_new_tokens: 15, block_size: 4, threshold: 0.4, top_k: [0, 1]}
reward: {function: "{folder}/reward.py:share_of_digits", workers: 1}
training: {mixed_precision: "no"}
"""
REWARD = '''
def share_of_digits(prompts, completions, **columns):
    """What a random model earns in part, so that every step has something to learn."""
    return [sum(c in "01234" for c in text) / max(1, len(text)) for text in completions]
'''


@dataclass(frozen=True)
class Kind:
    """script: its file; config: its YAML; arguments: further ones; phases: those that a kill aims at."""

    script: str
    config: str
    arguments: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("rollout", "update", "eval", "save")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "rl": Kind("rl.py", RL),
        "lora": Kind("rl.py", RL, ("lora.rank=4", "lora.dropout=0.1")),
        "value": Kind(
            "rl.py", RL, ("model.value_base_model={folder}/model",), ("rollout", "value", "update", "eval", "save")
        ),
        "sft": Kind("train/sft.py", SFT, (), ("replay", "update", "save")),
        "eval": Kind("eval.py", EVAL, (), ("start", "eval")),
        "ranks": Kind("rl.py", RL, ("experiment.processes=2",)),
    }
)


class Workspace:
    """A folder with the model, the reward and the YAMLs; runs are its subfolders."""

    def __init__(self, folder: Path, steps: int):
        """steps: of RL; fine-tuning has twice as many updates."""
        self.folder, self.steps = folder, steps
        tiny, model = ROOT / "configs" / "tiny_model", folder / "model"
        model.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (model / name).write_bytes((tiny / name).read_bytes())
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
        (model / "config.json").write_text(json.dumps(json.loads((tiny / "config.json").read_text()) | sizes))
        load_model(model, random_init_seed=0).save(model)
        (folder / "reward.py").write_text(REWARD)
        for name, kind in KINDS.items():
            (folder / f"{name}.yaml").write_text(kind.config.replace("{folder}", str(folder)))

    def command(self, name: str, project: str) -> list[str]:
        """The command of a run of this kind, after `python`."""
        kind = KINDS[name]
        total = f"training.max_steps={2 * self.steps}" if kind.config is SFT else f"experiment.total_step={self.steps}"
        return [
            str(ROOT / kind.script),
            f"config={self.folder / name}.yaml",
            f"experiment.project={project}",
            f"experiment.output_dir={self.folder}",
            *([] if kind.config is EVAL else [total]),
            *(argument.replace("{folder}", str(self.folder)) for argument in kind.arguments),
        ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def without_clock(value: Any) -> Any:
    """`value` without what a clock measures."""
    if isinstance(value, dict):
        kept = (k for k in value if k != "seconds" and not k.startswith(("time/", "memory/")) and "per_second" not in k)
        return {k: without_clock(value[k]) for k in kept}
    return [without_clock(inner) for inner in value] if isinstance(value, list) else value


def difference(one: Path, other: Path) -> str:
    """The first thing of two finished runs that is not equal; empty when all is."""
    for name in ("metrics.jsonl", "rollouts.jsonl", "graded.jsonl", "samples.jsonl"):
        if without_clock(read_rows(one / name)) != without_clock(read_rows(other / name)):
            return name
    for name in ("evaluations.json", "results.json"):
        found = [json.loads((run / name).read_text()) if (run / name).is_file() else None for run in (one, other)]
        if without_clock(found[0]) != without_clock(found[1]):
            return name
    if not (one / "ckpt").is_dir():
        return ""
    newest = [(run / "ckpt" / "optimized").resolve() for run in (one, other)]
    for path in sorted(newest[0].rglob("*.safetensors")):
        twin = newest[1] / path.relative_to(newest[0])
        if not twin.is_file() or path.read_bytes() != twin.read_bytes():
            return str(path.relative_to(newest[0]))
    states = [torch.load(path / "trainer" / "state.pt", weights_only=True) for path in newest]
    return "" if equal(*(state | {"seconds": 0.0} for state in states)) else "trainer/state.pt"


def equal(one: Any, other: Any) -> bool:
    """The same bits, tensors in dicts and lists included."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)
