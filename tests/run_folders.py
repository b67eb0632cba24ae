"""Folders of runs as rl.py and eval.py leave them, made up, with nasty text among the samples."""

import json
import math
import random
from pathlib import Path

NASTY = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> & \u202e &lt; \u2028 \\"
PHASES = ("rollout", "reward", "replay", "update", "sync")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rl_run(folder, name="rl_tiny-1", steps=60, better=0.0, seed=1, finished=True, rate=1e-4):
    """A folder of an RL run of `steps` steps that learns; `better`: by how much its accuracy is higher."""
    draw = random.Random(seed)
    folder = Path(folder)
    folder.mkdir(parents=True)
    metrics, samples, scores = [], [], []

    def evaluate(step):
        chance = 0.15 + 0.6 * (1 - math.exp(-step / 25)) + better * step / steps
        for entry in ("dynamic-b4-greedy", "dynamic-b4-T1"):
            right = {f"t{i}": [float(random.Random(f"{seed // 9} {i} {j} {entry}").random() < chance) for j in range(2)]
                     for i in range(128)}  # fmt: skip
            shares = [sum(r) / 2 for r in right.values()]
            mean = sum(shares) / 128
            error = math.sqrt(sum((s - mean) ** 2 for s in shares) / 127 / 128)
            figures = {"accuracy": mean, "stderr": error, "reward": mean, "length": 15.0, "tokens_per_forward": 1.4}
            metrics.append({"step": step} | {f"eval/{entry}/{key}": value for key, value in figures.items()})
            scores.append({"step": step, "entry": entry, "scores": right})

    evaluate(0)
    for step in range(1, steps + 1):
        reward = 0.2 + 0.6 * (1 - math.exp(-step / 25)) + draw.gauss(0, 0.03) + better * step / steps
        metrics.append(
            {
                "step": step, "reward/mean": reward,
                "reward/verifier_mean": reward * 0.8, "reward/style_mean": reward * 0.2,
                "reward/std": 0.4, "reward/left_out": 0.0, "completion_length": 14 + draw.gauss(0, 0.4),
                "tokens_per_forward": 1.2 + step / steps, "kl": 1e-4 * step * draw.random(), "mismatch_kl": 1e-7,
                "mismatch_abs": 2e-4, "entropy": 1.8 * math.exp(-step / 30), "loss": draw.gauss(0, 0.01),
                "grad_norm": 0.8 + draw.random() / 3, "learning_rate": rate * (1 - 0.7 * step / steps),
                "memory/process_gib": 1.1 + step / 200, "tokens_per_second": 2100 + draw.gauss(0, 90),
                "clip_ratio": 0.02 * draw.random(), "truncated": 0.1, "groups_dropped/equal": 3.0,
                "weights_version": float(step), "time/step_seconds": 4.0, "time/at": 1.8e9 + 4 * step,
            } | {f"time/{phase}_seconds": 0.3 + draw.random() / 9 + (i == 3) * 1.5 for i, phase in enumerate(PHASES)}
        )  # fmt: skip
        for i in range(4):
            good = draw.random() < reward
            samples.append(
                {
                    "step": step, "task": f"t{i}", "prompt": "23731784=",
                    "completion": "\\boxed{12334778}" if good else NASTY,
                    "answer": "12334778", "columns": {}, "reward": float(good),
                    "rewards": {"verifier": float(good), "style": 0.5},
                    "block_size": 4, "advantage": 0.4, "key": [step, f"t{i}", 0], "prompt_ids": [1, 2, 3],
                    "canvas_ids": [4, 5, 6, 2], "canvas_step_map": [1, 2, 2, 3], "canvas_logprobs": [-0.1] * 4,
                    "num_response_tokens": 4, "finish_reason": "stop", "num_steps": 3, "weights_version": step,
                }
            )  # fmt: skip
        if step % 15 == 0:
            evaluate(step)
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "rollouts.jsonl", samples)
    lines(folder / "scores.jsonl", scores)
    (folder / "config.yaml").write_text(
        f"experiment:\n  project: {name}\n  output_dir: runs\n  total_step: {steps}\n"
        "model:\n  pretrained_model: runs/sft_tiny-1/ckpt/step-000150\n  optimized_name: optimized\n"
        f"dataset:\n  train_dataset: tiny_train\n  data_type: general\ntraining:\n  seed: {seed}\n  eps: 0.2\n"
        f"optimizer:\n  params:\n    learning_rate: {rate}\nlr_scheduler:\n  scheduler: linear\n"
    )
    changed = {"optimizer.params.learning_rate": [1e-4, rate]} if rate != 1e-4 else {}
    (folder / "report.json").write_text(
        json.dumps({"command": "rl", "recipe": "configs/rl_tiny.yaml", "changed": changed})
    )
    if finished:
        (folder / "final.json").write_text("{}")
    return folder
