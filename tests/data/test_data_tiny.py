import filecmp
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data import built_in, load_examples, load_tasks, render_prompt, resolve_dataset, tiny
from data.built_in import BUILT_IN, built_in_names

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "configs" / "tiny_model"


@pytest.mark.slow
def test_files_have_the_sizes_and_the_schema(tmp_path):
    paths = BUILT_IN["tiny"].write(tmp_path, 3)
    train, test = (load_tasks(paths[name], data_type="math") for name in ("tiny_train", "tiny_test"))
    examples = load_examples(paths["tiny_sft"])
    assert (len(train), len(test), len(examples)) == (8000, 256, 120)
    for task in train + test:
        assert len(task.question) == 9 and task.question.endswith("=")
        assert task.answer == "".join(sorted(task.question[:-1]))
        assert render_prompt(task, family="sdar", data_type="math", template="plain") == task.question
    for example in examples:
        assert example.response == f"\\boxed{{{''.join(sorted(example.prompt[:-1]))}}}"


def test_no_multiset_occurs_twice_in_any_split():
    for seed in range(3):
        rows = tiny.tiny_rows(seed)
        asked = [row.get("question") or row["prompt"] for part in rows.values() for row in part]
        assert len({"".join(sorted(digits)) for digits in asked}) == len(asked) == 8376


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow) if task == "tiny-vision" else task for task in BUILT_IN]
)
def test_a_seed_gives_the_same_files_and_another_seed_others(task, tmp_path):
    write = BUILT_IN[task].write
    first, again, other = (write(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert list(first) == list(BUILT_IN[task].sizes)
    for name, size in BUILT_IN[task].sizes.items():
        assert filecmp.cmp(first[name], again[name], shallow=False)
        assert not filecmp.cmp(first[name], other[name], shallow=False)
        assert len(json.loads(first[name].read_text())) == size


def test_names_are_written_on_demand_once(tmp_path):
    path = resolve_dataset("tiny_train", folder=tmp_path, seed=7)
    assert path == tmp_path / "tiny-7" / "tiny_train.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny_sft.json", "tiny_test.json", "tiny_train.json"]
    before = path.stat().st_mtime_ns
    assert resolve_dataset("tiny_train", folder=tmp_path, seed=7).stat().st_mtime_ns == before


def test_files_of_another_version_are_in_another_folder(tmp_path, monkeypatch):
    old = resolve_dataset("tiny_test", folder=tmp_path, seed=7)
    old.write_text("[]")
    monkeypatch.setitem(built_in.BUILT_IN, "tiny", replace(BUILT_IN["tiny"], version=2))
    new = resolve_dataset("tiny_test", folder=tmp_path, seed=7)
    assert new == tmp_path / "tiny-v2-7" / "tiny_test.json" and len(json.loads(new.read_text())) == 256


def test_no_two_built_in_tasks_name_a_data_set_alike():
    assert len(set(built_in_names())) == len(built_in_names())


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("\\boxed{12334778}", 1.0),
        ("\\boxed{12334778}<eos>", 1.0),
        ("\\boxed{12334778}<eos><eos>}", 1.0),
        ("\\boxed{12334787}<eos>", 0.0),
        ("\\boxed{12334778}}<eos>", 0.0),
        (" \\boxed{12334778}<eos>", 0.0),
        ("<eos>\\boxed{12334778}", 0.0),
        ("\\boxed{12334778", 0.0),
        ("12334778", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_the_exact_string_before_the_first_eos(completion, reward):
    assert tiny.tiny_reward(["23731784="], [completion], ground_truth_answer=["12334778"], num_steps=[3]) == [reward]


def test_reward_loads_from_its_path_alone(tmp_path):
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('reward_file', {str(ROOT / 'data/tiny.py')!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "assert not {'torch', 'transformers', 'data'} & set(sys.modules)\n"
        "print(module.tiny_reward(['1='], ['\\\\boxed{1}'], ground_truth_answer=['1']))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[1.0]", done.stderr


@pytest.mark.parametrize("model", ["tiny_model", "tiny_llada_model"])
def test_committed_tokenizer_is_what_the_code_writes(model, tmp_path):
    tiny.write_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((MODEL.parent / model / name).read_text())


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)


def test_tokenizer_ids_agree_with_the_model_config(tokenizer):
    config = json.loads((MODEL / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"] == 40
    assert tokenizer.mask_token_id == config["mask_token_id"]
    assert tokenizer.pad_token_id == config["pad_token_id"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    generation = json.loads((MODEL / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_token_id]


def test_tokenizer_gives_back_what_it_was_given(tokenizer):
    prompt, answer = "23731784=", "\\boxed{12334778}<eos>"
    assert len(tokenizer(prompt).input_ids) == 9
    assert len(tokenizer(answer).input_ids) == 11
    every = "".join((*tiny.SPECIAL_TOKENS, *tiny.TEXT_TOKENS))
    assert tokenizer(every).input_ids == list(range(40))
    for text in (prompt, answer, every, " 1 , 2 . ( 3 ) \n\n", "\\boxed{\\boxed{}}", "{\\_x", ""):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.decode(tokenizer(answer).input_ids, skip_special_tokens=True) == answer.removesuffix("<eos>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("1a").input_ids) == ["1", "<unk>"]


def test_tokenizer_survives_save_and_load(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    text = "\\boxed{1 2}<eos>"
    assert again(text).input_ids == tokenizer(text).input_ids and again.decode(again(text).input_ids) == text


def test_tiny_file_has_no_import_of_the_project():
    spec = importlib.util.spec_from_file_location("alone", ROOT / "data" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.tiny_rows(0) == tiny.tiny_rows(0)
