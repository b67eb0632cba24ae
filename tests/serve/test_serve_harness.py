"""lm-eval itself, over a local task, with tiny models."""

import json
import sys

import pytest
from end_to_end import text_checkpoint

pytest.importorskip("lm_eval", reason="lm_eval is not installed (requirements-extras.txt)")

import dllm_commands
from models import load_model
from sample import Sampler, SamplingConfig
from sample.likelihood import bound, chain
from serve.harness import DiffusionHarness

ROWS = [{"question": f"{i}{i + 1}=", "choices": [str(i), f"{i}{i}", "+"], "answer": i % 3} for i in range(5)]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["7"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for name, text in (("choice", CHOICE), ("generate", GENERATE)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "rows.jsonl"))
    for family in ("sdar", "llada"):
        text_checkpoint(folder / family, family)
    return folder


def evaluated(folder, family, tasks, monkeypatch, *more):
    """Samples of each task, as lm-eval's command line writes them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    out = folder / f"out-{family}-{len(more)}"
    arguments = f"max_new_tokens=16,pretrained={folder / family},threshold=0.4,mc_num=4"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("dllm-lm-eval", "--model", "dllm", "--model_args", arguments, "--tasks", tasks, "--device", "cpu"),
            *("--include_path", str(folder), "--output_path", str(out), "--log_samples", *more),
        ],
    )
    dllm_commands.lm_eval()
    found = {}
    for path in out.rglob("samples_*.jsonl"):
        found[path.name.split("_2")[0].removeprefix("samples_")] = [
            json.loads(x) for x in path.read_text().splitlines()
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_lm_eval_scores_choices_and_answers_of_its_own_command_line(folder, family, monkeypatch):
    found = evaluated(folder, family, "tiny_choice,tiny_generate", monkeypatch)
    model = load_model(folder / family)
    sampler = Sampler(model, SamplingConfig(max_new_tokens=12, threshold=0.4, block_size=4 if family == "sdar" else 12))
    for row, sample in zip(ROWS, found["tiny_choice"], strict=True):
        context = model.tokenizer(row["question"])["input_ids"]
        for choice, shown in zip(row["choices"], sample["resps"], strict=True):
            ids = model.tokenizer(choice)["input_ids"]
            want = chain(model, context, ids, 4) if family == "sdar" else bound(model, context, ids, 4)
            assert float(shown[0][0]) == pytest.approx(want.logp, abs=1e-4)
    for row, sample in zip(ROWS, found["tiny_generate"], strict=True):
        (rollout,) = sampler.generate([model.tokenizer(row["question"])["input_ids"]])
        ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
        assert sample["resps"][0][0] == model.tokenizer.decode(ids, skip_special_tokens=True).split("7")[0]


@pytest.mark.slow
def test_rolling_likelihood_greediness_and_chats(folder):
    lm = DiffusionHarness(str(folder / "sdar"), device="cpu", max_new_tokens=16)

    class Request:
        def __init__(self, *args):
            self.args = args

    (text,) = lm.loglikelihood_rolling([Request("123456")], disable_tqdm=True)
    ids = lm.tok_encode("123456")
    assert text == pytest.approx(chain(lm.model, [lm.eot_token_id], ids, 4).logp, abs=1e-5)
    own = lm.generate_until([Request("12=", {"max_gen_toks": 3})], disable_tqdm=True)[0]
    results = lm.loglikelihood([Request("12=", own), Request("12=", "=?+")], disable_tqdm=True)
    assert all(logp < 0 for logp, _ in results)
    chat = lm.apply_chat_template([{"role": "user", "content": "1"}])
    assert chat == "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n" and lm.chat_template(True)


def test_an_unknown_model_argument_is_named(folder):
    with pytest.raises(ValueError, match="model_args blocksize: known are pretrained"):
        DiffusionHarness(str(folder / "sdar"), blocksize=4)
