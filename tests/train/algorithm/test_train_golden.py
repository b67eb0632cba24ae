"""TraceRL rows, log-probabilities and losses of the reference, under the `reference` normalisation."""

import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file
from trainees import replay_blocks

from models import load_model
from sample import Rollout
from train.algorithm.masking import shrink_steps
from train.algorithm.objectives import TokenBatch, clipped_surrogate, params_of, token_weights
from train.algorithm.packing import pack

SCENARIOS = [
    scenario
    for scenario in json.loads((GOLDEN / "sdar" / "tracerl.json").read_text())["scenarios"]
    if not scenario["left_padded_prompt"]
]
EOS, PAD, MASK = 2, 0, 255


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN / "sdar" / "tracerl.safetensors")


@pytest.fixture(scope="module")
def golden_sdar():
    return load_model(GOLDEN / "sdar")


@pytest.fixture(params=SCENARIOS, ids=lambda s: s["name"])
def case(request, reference):
    """(scenario, its tensors as arrays, its rollouts, our rows)."""
    scenario = request.param
    prefix = scenario["name"] + "."
    arrays = {name.removeprefix(prefix): t.numpy() for name, t in reference.items() if name.startswith(prefix)}
    rollouts = [rollout_of(arrays, s) for s in range(3)]
    rows = [
        replay_blocks(
            rollout,
            block_size=scenario["block_size"],
            mask_id=MASK,
            shrink=scenario["shrink"],
            pad_id=PAD,
            post_num=scenario["post_num"],
            per_round=True,
        )
        for rollout in rollouts
    ]
    return scenario, arrays, rollouts, rows


def rollout_of(arrays, sequence):
    response = arrays["response_ids"][sequence].tolist()
    length = response.index(EOS) + 1 if EOS in response else len(response)
    steps = arrays["step_map"][sequence].tolist()
    return Rollout(
        key=(sequence,),
        prompt_ids=arrays["prompt_ids"][sequence].tolist(),
        canvas_ids=response,
        canvas_step_map=steps,
        canvas_logprobs=[0.0] * len(response),
        num_response_tokens=length,
        finish_reason="stop" if EOS in response else "length",
        num_steps=max(steps),
    )


def reference_rows(arrays, sequence, row):
    """Our round number -> the reference's row for it: both leave out rounds that train nothing."""
    theirs = np.flatnonzero(arrays["row_sequence"] == sequence)
    ours = np.unique(row.round_index)
    assert len(theirs) == len(ours)
    return dict(zip(ours.tolist(), theirs.tolist(), strict=True))


def gather(arrays, name, sequence, row, prompt_tokens):
    """The reference's values [N] at our row's trained tokens."""
    rounds = reference_rows(arrays, sequence, row)
    return np.array(
        [
            arrays[name][rounds[r], prompt_tokens + c]
            for r, c in zip(row.round_index.tolist(), row.canvas_index.tolist(), strict=True)
        ]
    )


def test_six_scenarios_cover_every_setting():
    assert [s["name"] for s in SCENARIOS] == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert {s["block_size"] for s in SCENARIOS} == {4, 8} and {s["shrink"] for s in SCENARIOS} == {1, 2}
    assert {s["post_num"] for s in SCENARIOS} == {None, 0, 1}


def test_shrunk_steps(case):
    scenario, arrays, rollouts, _ = case
    for s, rollout in enumerate(rollouts):
        block = np.arange(scenario["L1"]) // scenario["block_size"]
        shrunk = shrink_steps(np.array(rollout.canvas_step_map), block, scenario["shrink"])
        assert shrunk.tolist() == arrays["step_map_shrunk"][s].tolist()


def test_rows(case):
    """The same tokens trained in the same round, under the same noise, after the same clean copy."""
    scenario, arrays, rollouts, rows = case
    P, R, b = scenario["L0"], scenario["L1"], scenario["block_size"]
    assert sum(row.num_rounds for row in rows) == scenario["num_rows"]
    for s, (rollout, row) in enumerate(zip(rollouts, rows, strict=True)):
        rounds = reference_rows(arrays, s, row)
        trained = np.zeros_like(arrays["p_mask"])
        trained[[rounds[r] for r in row.round_index.tolist()], P + row.canvas_index] = True
        ours = list(rounds.values())
        assert np.array_equal(trained[ours], arrays["p_mask"][ours])
        assert row.targets.tolist() == gather(arrays, "labels", s, row, P).tolist()
        clean = row.ids[row.copy == 0]
        assert clean.tolist() == [*rollout.prompt_ids, *rollout.canvas_ids][: len(clean)]
        round_of_copy = {int(row.copy[i]): r for i, r in zip(row.index, row.round_index.tolist(), strict=True)}
        for number, round_ in round_of_copy.items():
            inside = row.copy == number
            at = row.positions[inside] - P
            assert len(set(at // b)) == 1 and len(at) == min(b, R - at[0])
            noisy = arrays["input_ids"][rounds[round_], P + R + at]
            assert row.ids[inside].tolist() == noisy.tolist()


def test_log_probabilities_and_losses(case, golden_sdar):
    """The reference counts as clipped every ratio outside the range; ours those where the clip decides the minimum."""
    scenario, arrays, _, rows = case
    P = scenario["L0"]
    batch = pack(rows, range(3), torch.device("cpu"))
    with torch.no_grad():
        logp = golden_sdar(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)
    want = np.concatenate([gather(arrays, "logp_new", s, row, P) for s, row in enumerate(rows)])
    assert logp.numpy() == pytest.approx(want, abs=5e-5)

    old = np.concatenate([gather(arrays, "logp_old", s, row, P) for s, row in enumerate(rows)])
    advantage = arrays["advantage_per_sequence"][batch.sample_of_N]
    weights = token_weights(rows, "reference", max_gen_length=1, longest_response=scenario["L1"])
    tokens = TokenBatch.of(
        logp,
        torch.from_numpy(old),
        torch.from_numpy(advantage),
        torch.from_numpy(np.concatenate([weights.policy[i] for i in batch.samples])),
    )
    loss, sums = clipped_surrogate(
        tokens, params_of(clipped_surrogate, {name: scenario[name] for name in ("eps", "beta")})
    )
    assert float(sums["policy_loss"]) == pytest.approx(scenario["policy_loss"], abs=1e-5)
    assert float(sums["kl_loss"]) == pytest.approx(scenario["kl_loss_unscaled"], abs=1e-5)
    assert float(loss) == pytest.approx(scenario["total_loss"], abs=1e-5)
    assert int(sums["tokens"]) == int(arrays["p_mask"].sum())
    log_ratio = logp.numpy() - old
    outside = np.abs(np.exp(log_ratio) - 1.0) > scenario["eps"]
    assert outside.mean() == pytest.approx(scenario["clipped_fraction"], abs=1e-6)
    assert int(sums["clipped"]) == int((outside & (log_ratio * advantage > 0)).sum()) > 0
