"""What the end-to-end tests run on: a tiny model that reads and writes text, task files, configs, a user's reward."""

import json
import shutil
from pathlib import Path

from helpers import TINY_CONFIGS, tiny_checkpoint

TOKENIZER = Path(__file__).parents[1] / "configs" / "tiny_model"

REWARD = '''
def share_of_small_digits(prompts, completions, **columns):
    """Something that a random model earns in part: the share of characters that are 0 to 4."""
    return [sum(c in "01234" for c in text) / max(1, len(text)) for text in completions]


def always_one(prompts, completions, **columns):
    return [1.0] * len(completions)


def by_answer(prompts, completions, *, ground_truth_answer, finish_reason, completion_ids, num_steps, **columns):
    assert len(ground_truth_answer) == len(finish_reason) == len(completion_ids) == len(num_steps) == len(completions)
    return [float(len(ids) % 3) for ids in completion_ids]


def raises(prompts, completions, **columns):
    raise ZeroDivisionError("the user's mistake")


def not_a_number(prompts, completions, **columns):
    return [float("nan") if i % 2 else float(len(text) % 5) for i, text in enumerate(completions)]


def too_few(prompts, completions, **columns):
    return [1.0]


def hangs(prompts, completions, **columns):
    while True:
        pass
'''


SIZES = {
    "sdar": {"vocab_size": 40, "max_position_embeddings": 256},
    "sdar_moe": {"vocab_size": 40, "max_position_embeddings": 256},
    "llada2": {"vocab_size": 40, "max_position_embeddings": 256},
    "dream": {"vocab_size": 40, "max_position_embeddings": 256},
    "lladav": {"vocab_size": 40, "max_position_embeddings": 256},
    "diffusion_gemma": {
        "text_config": TINY_CONFIGS["diffusion_gemma"]["text_config"]
        | {"vocab_size": 40, "max_position_embeddings": 256}
    },
    "llada": {"vocab_size": 40, "embedding_size": 40, "max_sequence_length": 256},
    "mmada": {
        **{"vocab_size": 56, "embedding_size": 56, "new_vocab_size": 56, "llm_vocab_size": 40},
        "max_sequence_length": 256,
    },
}


def text_checkpoint(folder, family="sdar", **config):
    """A tiny random checkpoint folder with the tiny task's tokenizer."""
    sizes = SIZES[family] | config
    if family == "diffusion_gemma" and config:
        sizes = {"text_config": SIZES[family]["text_config"] | config}
    tiny_checkpoint(folder, family, **sizes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, Path(folder) / name)
    return Path(folder)


def write_tasks(path, count=12):
    """Questions of 2 to 7 characters, so that every remainder of the block occurs."""
    rows = [
        {"question": f"{'123456'[: 1 + i % 6]}=", "ground_truth_answer": str(i), "task_id": f"task-{i}"}
        for i in range(count)
    ]
    return write_json(path, rows)


def write_json(path, rows):
    path = Path(path)
    path.write_text(json.dumps(rows))
    return path


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def without_clock(rows):
    """Rows of metrics without what a clock measures."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and "per_second" not in k}
        for row in rows
    ]


RL = """
experiment: {project: rl, total_step: 2, save_every: 1, eval_every: 2, threads: 1}
dataset: {data_type: general, template: plain}
rollout: {num_task_per_step: 4, num_response_per_task: 4, max_new_tokens: 10, block_size: 4, threshold: 0.4}
training: {batch_size_lm: 8, gradient_accumulation_steps: 2, mixed_precision: "no"}
optimizer: {params: {learning_rate: 1.0e-3}}
reward: {workers: 1}
evaluation: {data_type: general, num_response_per_task: 2, max_new_tokens: 10, threshold: 0.4, top_k: [0, 1]}
"""

EVAL = """
experiment: {project: eval, threads: 1}
dataset: {data_type: general, template: plain}
rollout: {num_response_per_task: 2, max_new_tokens: 10, threshold: 0.4}
training: {mixed_precision: "no"}
reward: {workers: 1}
"""

SFT = """
experiment: {project: sft, save_every: 4, threads: 1}
training: {method: semi-ar, num_train_epochs: 8, batch_size_lm: 4, gradient_accumulation_steps: 1,
  mask_times_per_sample: 2, mixed_precision: "no"}
optimizer: {params: {learning_rate: 1.0e-2}}
"""


class Workshop:
    """A folder with a model, task files and a user's reward, and the arguments that name them."""

    def __init__(self, folder, model_folder):
        self.folder, self.model = Path(folder), model_folder
        self.tasks = write_tasks(self.folder / "tasks.json")
        self.test = write_tasks(self.folder / "test.json", 3)
        self.pairs = write_json(
            self.folder / "pairs.json",
            [{"prompt": f"{i}=", "response": f"\\boxed{{{i}}}", "step_map": [0, 2, 1]} for i in range(6)],
        )
        self.reward = self.folder / "my_reward.py"
        self.reward.write_text(REWARD)
        self.runs = self.folder / "runs"

    def arguments(self, text, *arguments, reward="share_of_small_digits"):
        """What is typed after the script's name; `text` is the config file."""
        kind = next(name for name, known in (("rl", RL), ("eval", EVAL), ("sft", SFT)) if text is known)
        path = self.folder / f"{kind}.yaml"
        path.write_text(text)
        named = {
            "rl": {"train_dataset": self.tasks},
            "eval": {"eval_dataset": self.test},
            "sft": {"optimization_data": self.pairs},
        }[kind]
        return [
            f"config={path}",
            f"model.pretrained_model={self.model}",
            "model.device=cpu",
            f"experiment.output_dir={self.runs}",
            f"dataset.folder={self.folder}",
            *(f"dataset.{key}={value}" for key, value in named.items()),
            *([f"evaluation.eval_dataset={self.test}"] if kind == "rl" else []),
            *([f"reward.function={self.reward}:{reward}"] if kind != "sft" and reward else []),
            *arguments,
        ]
