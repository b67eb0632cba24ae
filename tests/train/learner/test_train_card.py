import json
import re

import pytest
from helpers import tiny_model

from configs import load_config
from train.learner.card import Card
from train.learner.checkpoint import BASE_CARD, CARD, RL, SFT, put_card


def card(tmp_path, *typed, command=RL, yaml="rl_tiny", rows=()):
    config = load_config([f"config=configs/{yaml}.yaml", *typed], command="rl" if command == RL else "sft")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Card.of(config, command).text(tiny_model("sdar"), metrics, 40)


def test_a_card_names_base_data_method_config_and_figures(tmp_path):
    rows = [
        {"step": step, "eval/greedy/accuracy": step / 100, "eval/greedy/stderr": 0.01, "time/at": 1.0}
        for step in (0, 25, 50)
    ]
    text = card(tmp_path, "training.eps=0.3", "lora.rank=4", "model.pretrained_model=JetLM/SDAR-4B-Chat", rows=rows)
    front = text.split("---\n")[1]
    assert 'base_model: "JetLM/SDAR-4B-Chat"' in front and 'library_name: "dllm-post-training"' in front
    for shown in ("| data | tiny_train |", "TraceRL (arXiv:2509.06949)", "| steps | 40 RL steps |", "rank 4, alpha 32"):
        assert shown in text
    assert "`configs/rl_tiny.yaml`, with" in text and "    training.eps: 0.3\n" in text
    assert "after step 50" in text and "| greedy | 0.5 | 0.01 |" in text
    assert "load_model(" in text and "SGLang and LMDeploy read this layout" in text


def test_a_card_of_a_local_base_names_no_hub_model_and_no_secret(tmp_path):
    text = card(tmp_path, "model.pretrained_model=/models/x", "judge.api=http://me:hunter2@h/v1", "judge.model=m")
    assert "base_model" not in text and "| base | /models/x |" in text and "hunter2" not in text


def test_a_card_of_sft_has_no_figures_where_none_were_made(tmp_path):
    text = card(tmp_path, command=SFT, yaml="sft_tiny", rows=[{"step": 1, "loss": 1.0}])
    assert "supervised fine-tuning, semi-ar" in text and "## Figures" not in text


@pytest.mark.parametrize("name", ["a|b\x1b[2J<script>"])
def test_names_stay_text_in_a_card(name, tmp_path):
    text = card(tmp_path, f"dataset.train_dataset={name}")
    row = re.search(r"\| data \| (.*) \|", text)[1]
    assert row == "a\\|b\\x1b[2J&lt;script>"


def test_the_base_s_card_is_kept_beside_and_ours_is_replaced(tmp_path):
    (tmp_path / CARD).write_text("# The base\n")
    ours = '---\nlibrary_name: "dllm-post-training"\n---\n'
    put_card(tmp_path, ours)
    put_card(tmp_path, ours + "again")
    assert (tmp_path / BASE_CARD).read_text() == "# The base\n" and (tmp_path / CARD).read_text() == ours + "again"
