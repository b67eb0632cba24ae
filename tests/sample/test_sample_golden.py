import json

import pytest
from helpers import GOLDEN

from models import load_model
from sample import Sampler, SamplingConfig

CASES = [
    (name, case)
    for name in ("sdar", "sdar_tied")
    for case in json.loads((GOLDEN / name / "decode.json").read_text())["cases"]
]


@pytest.fixture(scope="module")
def models():
    return {name: load_model(GOLDEN / name) for name in ("sdar", "sdar_tied")}


@pytest.mark.parametrize(("name", "case"), CASES, ids=[case["name"] for _, case in CASES])
def test_reference_decode(models, name, case):
    config = SamplingConfig(
        max_new_tokens=case["gen_length"],
        block_size=case["block_size"],
        steps_per_block=case["steps_per_block"],
        strategy=case["strategy"],
        threshold=case["threshold"] if case["threshold"] is not None else 0.9,
        stop_ids=case["stop_ids"],
    )
    (rollout,) = Sampler(models[name], config).generate([case["prompt_ids"]])
    length = min(case["num_decided"], case["gen_length"], rollout.num_response_tokens)
    assert length == rollout.num_response_tokens
    assert rollout.token_ids == case["token_ids"][:length]
    assert rollout.step_map == case["step_map"][:length]
    assert (rollout.finish_reason == "stop") == case["stopped"]
    if case["stopped"]:
        assert rollout.token_ids[-1] in case["stop_ids"]
        assert not set(rollout.token_ids[:-1]) & set(case["stop_ids"])
    else:
        assert length == case["gen_length"]
