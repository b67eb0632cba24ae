"""The order in which an RL run is checked."""

import pytest

from configs import load_config
from train import prepare, rl


def test_a_wrong_key_is_named_before_the_sft_that_makes_the_model_is_checked(monkeypatch):
    typed = ["config=configs/rl_tiny.yaml", "rollout.num_response_per_task=1", "dry_run=true"]
    config = load_config(typed, "usage", "rl")
    monkeypatch.setattr(prepare, "checked_preparation", lambda config: pytest.fail("the SFT was checked"))
    with pytest.raises(ValueError, match="rollout.num_response_per_task=1: a group of one"):
        rl.check(config)
