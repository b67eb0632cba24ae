"""Writes docs/from_trl_verl.md from configs/elsewhere.py: python docs/make_from_trl_verl.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.elsewhere import TABLE, Named

PAGE = Path(__file__).with_name("from_trl_verl.md")
HEADER = """# Coming from TRL or verl

Diffusion models are trained here as these two train autoregressive ones: groups of responses to a prompt, rewards,
advantages, a clipped ratio. What is new is how a response is written and trained: by unmasking
([sampling](sampling.md)), and by the order in which that happened ([training](training.md#masking-what-is-trained)).

"""
NAMES = """
## Rewards

verl's function of one response becomes one of many:

    # my_reward.py
    def score(prompts, completions, ground_truth_answer, **columns):
        return [float(answer in text) for text, answer in zip(completions, ground_truth_answer)]

## Their names for our keys

Typed on the command line or left in a YAML, each of these is an error that names the key here; nothing is guessed.
This table and those messages are one: `configs/elsewhere.py`, from which `python docs/make_from_trl_verl.py` makes this
page. Names that are the same here (`temperature`, `top_p`, `beta`, `weight_decay`, ...) only lack their section.
"""

THERE_AND_HERE = (
    (
        "`GRPOTrainer(model, reward_funcs, args, train_dataset).train()`",
        "`from train.start import rl; rl(model, tasks, reward, rollout={...})`, or `python rl.py config=...`",
    ),
    ("`python3 -m verl.trainer.main_ppo key=value`", "`python rl.py config=configs/rl_sdar.yaml key=value`"),
    ("`SFTTrainer`", "`python train/sft.py config=...`; rows with `messages`, or `prompt` and `response`"),
    ("`DPOTrainer`", "the same with `training.sft_objective=dpo`; rows with `prompt`, `chosen` and `rejected`"),
    ("`GRPOConfig`, hydra's tree", "one YAML in sections; every key may be typed as `section.key=value`"),
    (
        "`reward_func(prompts, completions, **kwargs)`",
        "the same function: `reward.function=my_file.py:name`; it is given texts, no lists of messages",
    ),
    (
        "`compute_score(data_source, solution_str, ground_truth, extra_info)`",
        "such a function, which reads its columns by name (below)",
    ),
    ("reward of exact answers (`math_verify`, gsm8k)", "built in: `dataset.data_type: math`"),
    (
        "columns `prompt`, `answer`, ... of a data set",
        "a task has `question`, and `ground_truth_answer` for a verifier; `dataset.columns` names yours",
    ),
    (
        "vLLM or SGLang beside the trainer, weight sync",
        "one process a GPU samples and trains; weights are shared in place",
    ),
    (
        "`actor`, `rollout`, `ref`, `critic` workers under Ray",
        "`python multinode_rl.py ...` on every node ([several machines](distributed.md))",
    ),
    ("FSDP or Megatron checkpoints and a merge script", "each checkpoint is in the original layout"),
    ("`resume_from_checkpoint`, `resume_mode`", "type the same command again"),
)


def document() -> str:
    """The page."""
    parts = [HEADER, "| there | here |\n|---|---|\n"]
    parts += [f"| {there} | {here} |\n" for there, here in THERE_AND_HERE]
    parts.append(NAMES)
    for heading, entries in TABLE.items():
        parts.append(f"\n### {heading}\n\n| here | TRL | verl | elsewhere | |\n|---|---|---|---|---|\n")
        parts += [_row(entry) for entry in entries]
    return "".join(parts)


def _row(entry: Named) -> str:
    cells = [_names(entry.keys) or "-", *(_names(names) for names in (entry.trl, entry.verl, entry.others)), entry.note]
    return f"| {' | '.join(cells)} |\n"


def _names(names: str) -> str:
    return "<br>".join(f"`{name}`" for name in names.split())


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
