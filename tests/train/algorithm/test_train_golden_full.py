"""TraceRL of full attention against the reference: rows, log-probabilities, and its loss of row means and summed KL."""

import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file
from trainees import make_config

from models import load_model
from sample import Rollout
from train.algorithm.masking import shrink_steps
from train.algorithm.objectives import TokenBatch, clipped_surrogate, params_of, per_token, token_weights
from train.algorithm.packing import pack, within_budget
from train.algorithm.replay import Replayer, replay

PAD, MASK = 0, 255
CASES = [
    (family, scenario)
    for family in ("dream", "llada")
    for scenario in json.loads((GOLDEN / family / "tracerl.json").read_text())["scenarios"]
    if not scenario["left_padded_prompt"]
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]['name']}")
def case(request):
    """(model, scenario, its arrays, our rows in the order of the reference's)."""
    family, scenario = request.param
    model = load_model(GOLDEN / family)
    prefix = scenario["name"] + "."
    tensors = load_file(GOLDEN / family / "tracerl.safetensors")
    arrays = {name.removeprefix(prefix): t.numpy() for name, t in tensors.items() if name.startswith(prefix)}
    training = make_config(
        training={"shrink": scenario["shrink"], "post_num": scenario["post_num"], "normalization": "reference"}
    ).training
    replayer = Replayer(model.attention, model.logit_shift, MASK, block_size=4)
    rollouts = [rollout_of(arrays, s, scenario["trailing_pads"]) for s in range(3)]
    rows = [row for rollout in rollouts for row in replay(rollout, replayer, training, pad_id=PAD)]
    return model, scenario, arrays, rows


def rollout_of(arrays, sequence, pads):
    response = arrays["response_ids"][sequence].tolist()
    length = len(response)
    while pads and response[length - 1] == PAD:
        length -= 1
    return Rollout(
        key=(sequence,),
        prompt_ids=arrays["prompt_ids"][sequence].tolist(),
        canvas_ids=response,
        canvas_step_map=(arrays["step_map"][sequence] + 1).tolist(),
        canvas_logprobs=[0.0] * len(response),
        num_response_tokens=length,
        finish_reason="stop",
        num_steps=int(arrays["step_map"][sequence].max()) + 1,
    )


def test_shrunk_steps(case):
    _, scenario, arrays, _ = case
    for steps, want in zip(arrays["step_map"], arrays["step_map_shrunk"], strict=True):
        assert (shrink_steps(steps + 1, np.zeros_like(steps), scenario["shrink"]) - 1).tolist() == want.tolist()


def test_rows(case):
    """TrainingSample by row: the same input, the same trained tokens, of the same response."""
    _, scenario, arrays, rows = case
    P = scenario["L0"]
    assert len(rows) == scenario["num_rows"]
    for r, row in enumerate(rows):
        assert row.key == (int(arrays["row_sequence"][r]),) and row.num_rounds == 1
        assert row.ids.tolist() == arrays["input_ids"][r].tolist()
        assert (P + row.canvas_index).tolist() == np.flatnonzero(arrays["p_mask"][r]).tolist()
        assert row.targets.tolist() == arrays["labels"][r][arrays["p_mask"][r]].tolist()


def test_log_probabilities_and_losses(case):
    model, scenario, arrays, rows = case
    trained = arrays["p_mask"]
    old = [arrays["logp_old"][r][trained[r]] for r in range(len(rows))]
    advantages = [float(a) for a in arrays["row_advantage"]]
    weights = token_weights(rows, "reference", max_gen_length=1)
    device = torch.device("cpu")
    total = {"policy_loss": 0.0, "kl_loss": 0.0}
    params = params_of(clipped_surrogate, {name: scenario[name] for name in ("eps", "beta")})
    for group in within_budget(rows, range(len(rows)), 200):
        batch = pack(rows, group, device)
        with torch.no_grad():
            logp = model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)
        want = np.concatenate([arrays["logp_new"][r][trained[r]] for r in batch.samples])
        assert logp.numpy() == pytest.approx(want, abs=5e-5)
        tokens = TokenBatch.of(
            logp,
            per_token(old, batch, device),
            per_token(advantages, batch, device),
            per_token(weights.policy, batch, device),
            kl_weight=per_token(weights.kl, batch, device),
        )
        _, sums = clipped_surrogate(tokens, params)
        total = {name: total[name] + float(sums[name]) for name in total}
    assert total["policy_loss"] == pytest.approx(scenario["policy_loss"], abs=1e-5)
    assert total["kl_loss"] == pytest.approx(scenario["kl_loss_unscaled"], abs=1e-5)
