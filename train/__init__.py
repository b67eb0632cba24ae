"""Training: replay, objectives, updates, the RL loop and SFT. From outside: `train.rl.run`, `train.sft.run`,
`train.evaluation.run`, and what docs/api.md lists."""
