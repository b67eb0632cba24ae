"""What the end-to-end tests run on: a tiny model that reads and writes text, task files, configs, a user's reward."""

import json
import shutil
from pathlib import Path

from helpers import tiny_checkpoint

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


def text_checkpoint(folder, **config):
    """A tiny random SDAR folder with the tiny task's tokenizer."""
    tiny_checkpoint(folder, vocab_size=40, max_position_embeddings=256, **config)
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
