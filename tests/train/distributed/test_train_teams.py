"""Ranks that sample as one (rollout.tensor_parallel_size): the tokens of one process, and weights from every engine."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import rank_work
import torch
from helpers import tiny_checkpoint, tiny_model
from rank_jobs import run_ranks
from trainees import make_config

from models.parallel import Parallel, check_team, plan_of, shared_heads
from models.spec import CheckpointSpec, network_class
from train.setup.models import check_team as check_config

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
FAMILIES = ("sdar", "sdar_moe", "dream", "llada", "llada2")


class Pair:
    """Rank `place` of a team of two without the other."""

    def __init__(self, place):
        self.size, self.place = 2, place


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_team_are_the_model(family):
    model = tiny_model(family)
    plan = plan_of(network_class(model.spec.family)._tp_plan, model.hf_config)
    shares = 0
    for name, weight in model.named_parameters():
        one, two = (Parallel(Pair(place), plan).share(name, weight) for place in (0, 1))
        if one.shape == weight.shape:
            assert weight.dim() == 1 or "embed_tokens" in name or name.endswith("mlp.gate.weight"), name
            continue
        shares += 1
        (dim,) = [d for d in range(weight.dim()) if one.shape[d] * 2 == weight.shape[d]]
        if "gate_up_proj" in name:
            (gate, up), (gate_2, up_2) = one.chunk(2, dim), two.chunk(2, dim)
            assert torch.equal(torch.cat([gate, gate_2, up, up_2], dim), weight)
        else:
            assert torch.equal(torch.cat([one, two], dim), weight), name
        assert Parallel(Pair(0), plan).elements(name, one) == weight.numel()
    assert shares >= 2 * 6 + 1
    shared = shared_heads(model.hf_config, 2)
    assert shared.num_attention_heads * 2 == model.hf_config.num_attention_heads


def test_a_tied_head_stays_whole():
    model = tiny_model("sdar", tie_word_embeddings=True)
    assert "lm_head" not in plan_of(network_class(model.spec.family)._tp_plan, model.hf_config)


def test_teams_that_cannot_share_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size=3: 3 processes cannot share .*heads of 4.*choose from 1, 2"):
        check_team(tiny_model("sdar").hf_config, 3, "size")
    spec = CheckpointSpec.read(tiny_checkpoint(tmp_path))
    config = make_config(rollout={"tensor_parallel_size": 2})
    check_config(config, spec, 4)
    for other, processes, said in (
        (config, 3, "3 processes of a node do not divide into teams of 2.* dry_run=true experiment.processes=2"),
        (replace(config, experiment=replace(config.experiment, num_node=2)), 2, "1 processes of a node"),
        (make_config(rollout={"tensor_parallel_size": 2}, lora={"rank": 4}), 2, "adapters are sampled on whole models"),
    ):
        with pytest.raises(ValueError, match=f"rollout.tensor_parallel_size=2: {said}"):
            check_config(other, spec, processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "families",
    [("sdar", "sdar_moe"), *(pytest.param(pair, marks=pytest.mark.long) for pair in (("dream", "llada"), ("llada2",)))],
)
def test_a_team_samples_what_one_process_does(tmp_path, families):
    (want,) = run_ranks(tmp_path / "one", 1, rank_work.team_rollouts, families)
    for got, part in (result for result in run_ranks(tmp_path / "two", 2, rank_work.team_rollouts, families)):
        assert part < 0.75
        for mine, theirs in zip(got, want[0], strict=True):
            assert mine[:2] == theirs[:2]
            assert mine[2] == pytest.approx(theirs[2], abs=1e-5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        "fsdp2",
        pytest.param(
            "deepspeed_zero3", marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="no deepspeed")
        ),
    ],
)
def test_a_team_follows_every_engine(tmp_path, engine):
    """After an update it samples what the trained weights give."""
    folder = tiny_checkpoint(tmp_path / "model")
    (want,) = run_ranks(tmp_path / "one", 1, rank_work.team_after_update, folder, "ddp", 1)
    for before, after in run_ranks(tmp_path / "two", 2, rank_work.team_after_update, folder, engine, 2):
        assert before == want[0] and after == want[1] and before != after
