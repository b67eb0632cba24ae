"""What an objective may need: whole responses in a micro-batch, sums over the update before it, entropies. Each is
exact, however samples are packed and sharded."""

import dataclasses

import numpy as np
import pytest
import rank_work
import torch
from helpers import thinned, tiny_model
from rank_jobs import run_ranks
from trainees import assert_same_weights, make_policy, plain_distributions, sampled, shifted, weights_of

from sample import SamplingConfig
from train.algorithm.objectives import LEVELS, OBJECTIVES, BoundObjective, Needs, TokenBatch, objective, sum_by
from train.learner.optimizer import UpdateSettings

LENGTHS = [5, 8, 3]
ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 2.0, 0.3]
BONUS = 0.3
CORRECTED = {
    **{"rollout_correction": "truncated", "rollout_correction_level": "geometric", "rollout_correction_limit": 1.02},
    **{"rollout_rejection": "token", "rollout_rejection_low": 0.8, "rollout_rejection_high": 1.25},
}
"""A limit and bounds within what `moved` is off by."""
MINE = '''
import torch
from train.algorithm.objectives import objective, sum_by


def ratio_of(batch):
    tokens = sum_by(batch.response, torch.ones_like(batch.logp))
    return (sum_by(batch.response, batch.logp - batch.logp_old) / tokens).exp(), tokens


def baselines(batch, params):
    """The mean ratio of each group's responses, the mean entropy of the update's tokens."""
    ratio, tokens = ratio_of(batch)
    responses = sum_by(batch.group, 1 / tokens)
    mean = batch.entropy.mean().expand(len(batch.entropy))
    return {"ratio": sum_by(batch.group, ratio / tokens) / responses, "entropy": mean}


@objective(whole_responses=True, entropy=True, sums=baselines, defaults={"bonus": 0.3})
def everything(batch, params):
    ratio, _ = ratio_of(batch)
    policy = -(batch.weight * batch.advantage * (ratio - batch.sums["ratio"])).sum()
    spread = (batch.weight * (batch.entropy - batch.sums["entropy"]) ** 2).sum()
    return policy + params["bonus"] * spread, {"entropy": batch.entropy.sum()}
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("outside") / "mine.py"
    path.write_text(MINE)
    return f"{path}:everything"


def policy_of(family, target, **training):
    model = tiny_model(family)
    settings = {"gradient_accumulation_steps": 1, "batch_size_lm": 10**6, "logp_old": "rollout", "objective": target}
    policy = make_policy(model, SamplingConfig(block_size=4, max_new_tokens=16), **settings | training)
    policy.replay = dataclasses.replace(policy.replay, group_size=2)
    if policy.objective.needs.teacher:
        policy.reference = tiny_model(family, seed=1)
    return model, policy


def trained(family, target, rollouts, **training):
    """(metrics, weights) after one step; and every record that the objective saw."""
    model, policy = policy_of(family, target, **training)
    rewards = [max(0.0, number) for number in ADVANTAGES]
    seen, plain = [], BoundObjective.__call__

    def recorded(self, batch):
        seen.append(batch)
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundObjective, "__call__", recorded)
        metrics = policy.train(policy.batch(rollouts, ADVANTAGES, rewards=rewards), 1).metrics
    return metrics, weights_of(model), seen


@pytest.fixture(scope="module")
def moved():
    """Two responses each of three prompts, of a policy that has moved since."""
    return {
        family: shifted(sampled(tiny_model(family), LENGTHS, n=2, block_size=4), 0.4) for family in ("sdar", "dream")
    }


def test_sums_and_entropies_are_those_of_every_token_written_down_again(mine, moved):
    """Loss and weights after one update, from plain attention, response by response."""
    metrics, weights, _ = trained("sdar", mine, moved["sdar"], max_tokens_per_microbatch=60)
    assert metrics["micro_batches"] > 1
    model = tiny_model("sdar")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4, weight_decay=0.0)
    ratios, entropies = [], []
    for rollout in moved["sdar"]:
        found, _ = plain_distributions(model, rollout, 4)
        gaps = [logp_V[token] - rollout.canvas_logprobs[place] for place, (token, logp_V) in found.items()]
        ratios.append(torch.exp(sum(gaps) / len(gaps)))
        entropies.append([-(logp_V.exp() * logp_V).sum() for _, logp_V in found.values()])
    mean = float(sum(map(sum, entropies)).detach()) / sum(map(len, entropies))
    loss = 0.0
    for i, (ratio, of_tokens) in enumerate(zip(ratios, entropies, strict=True)):
        group = float(sum(ratios[i // 2 * 2 : i // 2 * 2 + 2]).detach()) / 2
        spread = sum((entropy - mean) ** 2 for entropy in of_tokens)
        loss = loss + (-len(of_tokens) * ADVANTAGES[i] * (ratio - group) + BONUS * spread) / (6 * 16)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert metrics["objective/entropy"] == pytest.approx(mean, abs=1e-5)
    loss.backward()
    optimizer.step()
    assert_same_weights(weights, weights_of(model), 2e-5)


@pytest.mark.parametrize("family", ["sdar", "dream"])
def test_no_packing_changes_what_an_objective_gets(mine, moved, family):
    """Under full attention a response is many sequences: they stay together all the same."""
    whole, weights, (everything,) = trained(family, mine, moved[family])
    split, others, parts = trained(family, mine, moved[family], max_tokens_per_microbatch=1)
    assert split["micro_batches"] == len(parts) == 6 and whole["micro_batches"] == 1
    for name in ("loss", "grad_norm", "objective/entropy", "trained_tokens"):
        assert split[name] == pytest.approx(whole[name], abs=1e-5), name
    assert_same_weights(others, weights, 1e-5)
    for batch in (everything, *parts):
        assert batch.response.dtype == batch.group.dtype == batch.round.dtype == torch.int64
        assert set(batch.response.tolist()) == set(range(int(batch.response.max()) + 1))
        assert all(
            x.dtype == torch.float32 for x in vars(batch).values() if torch.is_tensor(x) and x.is_floating_point()
        )
    assert sorted(len(batch.logp) for batch in parts) == sorted(torch.bincount(everything.response).tolist())
    assert everything.group.unique().tolist() == [0, 1, 2]


@pytest.mark.slow
def test_without_the_need_a_response_of_full_attention_is_split(moved):
    """What the need is for."""
    assert len(trained("dream", "clip", moved["dream"], max_tokens_per_microbatch=1)[2]) > 6


def test_updates_of_an_objective_with_sums_are_made_of_whole_groups(mine, moved):
    model, policy = policy_of("sdar", mine)
    policy.replay = dataclasses.replace(
        policy.replay, training=dataclasses.replace(policy.replay.training, batch_size_lm=1)
    )
    batch = policy.batch(moved["sdar"], ADVANTAGES)
    keys = [[batch.samples[i].key[:-1] for i in which] for which in policy.replay.updates(batch, 1, whole_groups=True)]
    assert len(keys) == 3 and all(len(update) == 2 and len(set(update)) == 1 for update in keys)
    assert len(list(policy.replay.updates(batch, 1))) == 6
    assert policy.train(batch, 1).metrics["updates"] == 3


def test_a_task_that_is_drawn_twice_has_two_groups():
    _, policy = policy_of("sdar", "clip")
    groups = [policy.replay.group_of((1, "task", index)) for index in range(4)]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    alone = dataclasses.replace(policy.replay, group_size=None)
    assert alone.group_of((1, "a", 0)) == alone.group_of((1, "a", 9)) != alone.group_of((1, "b", 0))


def test_sum_by():
    number, value = torch.tensor([0, 2, 0, 2, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True)
    assert sum_by(number, value).tolist() == [4.0, 6.0, 4.0, 6.0, 5.0]
    (sum_by(number, value) * torch.tensor([1.0, 10.0, 0.0, 0.0, 0.0])).sum().backward()
    assert value.grad.tolist() == [1.0, 10.0, 1.0, 10.0, 0.0]
    assert len(sum_by(number[:0], value[:0])) == 0


def test_needs_and_defaults_are_written_on_the_function():
    def sums(batch, params):
        return {}

    @objective(whole_responses=True, entropy=True, sums=sums, training=("eps",), defaults={"alpha": 1.0})
    def mine(batch: TokenBatch, params):
        return batch.logp.sum(), {}

    assert mine.needs == Needs(True, sums, True, ("eps",)) and mine.defaults == {"alpha": 1.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.needs.entropy = False


def test_nothing_is_computed_that_no_objective_asked_for(moved):
    model, policy = policy_of("sdar", "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.special.entr", None)
        patch.setattr(policy.updater, "outputs", None)
        policy.train(policy.batch(moved["sdar"], ADVANTAGES), 1)
    assert UpdateSettings.of(policy.replay.training).max_tokens == policy.updater.settings.max_tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "engine"),
    [("dream", "ddp"), *(pytest.param("sdar", kind, marks=pytest.mark.long) for kind in ("fsdp2", "zero3"))],
)
def test_no_number_of_ranks_changes_what_an_objective_gets(tmp_path, mine, family, engine):
    """Groups of two in updates of whole groups; on 4 ranks some have no sample of an update."""
    if engine == "zero3":
        pytest.importorskip("deepspeed", reason="the engine's package is not installed")
    settings = {"objective": mine, "logp_old": "rollout", "num_train_epochs": 2}
    arguments = (family, (5, 8, 3), 2, False, None)
    want = run_ranks(tmp_path / "one", 1, rank_work.rl_updates_with, arguments, settings)[0]
    for metrics, weights in run_ranks(tmp_path / "many", 4, rank_work.rl_updates_with, (*arguments, engine), settings):
        for mine_, theirs in zip(metrics, want[0], strict=True):
            for name in ("loss", "grad_norm", "objective/entropy", "updates", "trained_tokens"):
                assert mine_[name] == pytest.approx(theirs[name], abs=1e-5), name
        assert_same_weights(weights, want[1], 1e-5)
    assert want[0][0]["updates"] > 2 and np.isfinite(want[0][1]["loss"])


def assert_packed_alike(family, name, rollouts, **settings):
    """A step of two epochs gives the same with a response, or a copy of it, a micro-batch; its metrics, and the
    records that the objective saw of whole updates."""
    settings |= {"logp_old": "recompute", "nll_weight": 0.1, "batch_size_lm": 8, "num_train_epochs": 2}
    whole, weights, seen = trained(family, name, rollouts, **settings)
    split, others, _ = trained(family, name, rollouts, **settings, max_tokens_per_microbatch=1)
    assert split["micro_batches"] > whole["micro_batches"] and whole["updates"] > 2
    assert split.keys() == whole.keys() >= {"ratio", "clip_ratio", "kl", "policy_loss", "objective/nll"}
    for metric, value in whole.items():
        if metric not in ("micro_batches", "update_tokens_per_second"):
            assert split[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), metric
    assert_same_weights(others, weights, 1e-5)
    return whole, seen


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("sdar", "stabledrl"), *(("dream", name) for name in OBJECTIVES)])
def test_no_packing_changes_a_built_in_objective(moved, family, name):
    """Right traces, a correction of whole responses that is truncated, and a rejection of tokens among its terms."""
    metrics, seen = assert_packed_alike(family, name, moved[family], **CORRECTED)
    ratios = torch.cat([LEVELS["geometric"](batch) for batch in seen])
    assert metrics["rollout_weight"] < float(ratios.mean()) - 1e-3 and 0.1 < metrics["rollout_rejected"] < 0.9


@pytest.mark.parametrize("family", ["dream", "sdar"])
@pytest.mark.parametrize("name", thinned(["spg", "stabledrl", "espo", "ebpo", "bgpo", "gdsd"], 3))
def test_no_packing_changes_an_objective_of_bounds(moved, family, name):
    """Every place is trained in two masked copies, each a sequence of its own under full attention."""
    _, seen = assert_packed_alike(family, name, moved[family], method="elbo", mask_times_per_sample=2)
    for batch in seen:
        places, copies = torch.unique(torch.stack([batch.response, batch.place]), dim=1, return_counts=True)
        assert (copies == 2).all() and len(places[0].unique()) > 1


@pytest.mark.slow
def test_no_number_of_ranks_changes_a_built_in_objective(tmp_path):
    """Weights that are normalised over a group, the likelihood of right traces, a correction of whole responses that is
    truncated, a rejection of tokens. distill has a teacher, and a test of its own (test_train_references.py)."""
    names = [name for name in OBJECTIVES if name != "distill"]
    settings = CORRECTED | {"rollout_correction_level": "sequence", "logp_old": "recompute", "nll_weight": 0.1}
    arguments = names, ("sdar", (5, 8, 3), 2, False, None), settings | {"num_train_epochs": 2, "method": "TraceRL"}
    (wants,) = run_ranks(tmp_path / "one", 1, rank_work.rl_updates_of_each, *arguments)
    for found in run_ranks(tmp_path / "two", 2, rank_work.rl_updates_of_each, *arguments):
        for name in names:
            (metrics, weights), (want, others) = found[name], wants[name]
            for mine_, theirs in zip(metrics, want, strict=True):
                assert mine_.keys() == theirs.keys() >= {"ratio", "kl", "objective/nll", "rollout_weight", "updates"}
                for metric in mine_.keys() - {"micro_batches", "update_tokens_per_second"}:
                    assert mine_[metric] == pytest.approx(theirs[metric], rel=1e-5, abs=1e-5), (name, metric)
            assert_same_weights(weights, others, 1e-5)
            assert 0.1 < want[0]["rollout_rejected"] < 0.9 and want[0]["updates"] > 2
