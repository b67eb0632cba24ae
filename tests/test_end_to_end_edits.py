"""RL whose sampler overwrites tokens and masks them again: every choice is trained, and a kill changes nothing."""

import pytest
from end_to_end import RL, read_jsonl, without_clock

from configs import load_config
from sample import Rollout
from train import rl
from train.learner.policy import Policy

ARGUMENTS = [
    *("rollout.edit_threshold=0.0", "rollout.max_post_steps=2", "rollout.remask_threshold=0.05"),
    *("rollout.num_task_per_step=2", "evaluation.eval_dataset=''"),
]


def run_rl(shop, *arguments):
    return rl.run(load_config(shop.arguments(RL, *ARGUMENTS, *arguments)))


@pytest.mark.slow
def test_a_run_with_edits_that_dies_in_its_updates_goes_on_from_its_events_on_disk(shop, monkeypatch):
    run_rl(shop, "experiment.project=straight")
    train = Policy.train

    def dies_in_step_2(self, batch, step, progress=None):
        if step == 2:
            raise KeyboardInterrupt
        return train(self, batch, step, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Policy, "train", dies_in_step_2)
        run_rl(shop, "experiment.project=killed")
    run_rl(shop, "experiment.project=killed")
    killed, straight = (shop.runs / name for name in ("killed", "straight"))
    rows = without_clock(read_jsonl(straight / "metrics.jsonl"))
    assert without_clock(read_jsonl(killed / "metrics.jsonl")) == rows
    assert (killed / "rollouts.jsonl").read_bytes() == (straight / "rollouts.jsonl").read_bytes()
    rollouts = [Rollout.from_dict(row) for row in read_jsonl(straight / "rollouts.jsonl")]
    assert sum(rollout.events.overwrites().sum() for rollout in rollouts)
    for row in rows:
        assert row["edits/overwritten"] > 0 and row["edits/events_per_token"] > 1 and row["mismatch_kl"] < 1e-9
