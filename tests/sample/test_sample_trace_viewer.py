import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import document_of, needs_chromium
from helpers import tiny_model
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from sample import Sampler, SamplingConfig
from sample.viewer.page import PARTS, Origin, build_page, find_origin, main, page_data
from sample.viewer.token_texts import token_texts
from sample.viewer.trace import Trace, read_traces

ROOT = Path(__file__).parents[2]
NASTY = [
    "</script>",
    "<script>alert(1)</script>",
    "<!--",
    "-->",
    "&amp;",
    "&",
    '"',
    "'",
    "\u2028",
    "\u2029",
    "]]>",
    "\\",
    "\0",
]


def row(**more):
    """Of rollouts.jsonl: prompt of 5, so that blocks of 4 begin at answer positions 0, 3 and 7."""
    return {
        "step": 2, "task": "t0", "text": "abc", "reward": 1.0, "advantage": 0.5, "key": [2, "t0", 0],
        "prompt_ids": [5, 6, 7, 8, 9], "canvas_ids": [10, 11, 12, 13, 2, 1, 1],
        "canvas_step_map": [2, 1, 2, 3, 4, 0, 0],
        "canvas_logprobs": [-0.1, -0.2, -0.3, -0.4, -0.5, 0.0, 0.0], "num_response_tokens": 5, "finish_reason": "stop",
        "num_steps": 4, "weights_version": 0,
    } | more  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def word_tokenizer(arguments):
    """One id a word, from 20 on."""
    vocabulary = {f"w{i}": i for i in range(20)} | {word: 20 + i for i, word in enumerate(arguments)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")))


class Page(HTMLParser):
    """Elements with their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        self.elements.append(("", {}, []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def all(self, tag):
        return [(attrs, "".join(text)) for name, attrs, text in self.elements if name == tag]


def data_of(page):
    [text] = [text for attrs, text in Page(page).all("script") if attrs.get("id") == "data"]
    return json.loads(text)


def test_whatever_the_file_says_is_only_text(tmp_path):
    ids = list(range(20, 20 + len(NASTY)))
    rows = [
        row(task=text, answer=text, canvas_ids=ids, canvas_step_map=[1] * len(ids), canvas_logprobs=None)
        for text in NASTY
    ]
    rows += [{"entry": text, "task": 0, "prompt": text, "token_ids": [3], "step_map": [1]} for text in NASTY]
    chosen = read_traces(write(tmp_path / "x.jsonl", rows), 100)
    origin = Origin(word_tokenizer(NASTY), "block", 4)
    page = build_page("a</title><script>&.jsonl", chosen, origin)
    data = data_of(page)
    assert data == json.loads(json.dumps(page_data("a</title><script>&.jsonl", chosen, origin)))
    assert {text for _, text, _ in data["vocabulary"]} >= set(NASTY)
    assert [group["samples"][0]["answer"] for group in data["groups"][: len(NASTY)]] == NASTY
    assert [group["prompts"][0] for group in data["groups"][len(NASTY) :]] == NASTY
    parsed = Page(page)
    assert parsed.all("title") == [({}, "a</title><script>&.jsonl · trace")]
    [(_, raw), (_, script)] = parsed.all("script")
    assert not set("<>&\u2028\u2029\0") & set(raw) and raw.isascii()
    assert script == (PARTS / "viewer.js").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 2
    assert page.endswith("</script>\n</body>\n</html>\n")


def test_the_page_fetches_nothing_and_runs_its_own_script_only(tmp_path):
    page = build_page("x", read_traces(write(tmp_path / "x.jsonl", [row()]), 1), Origin(None, None, None))
    assert not re.search(r"https?:|//\w+\.|\bsrc\s*=|\bhref\s*=|@import|url\(|\beval\(|innerHTML", page)
    parsed = Page(page)
    [policy] = [a["content"] for a, _ in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    for kind, text in (("style", parsed.all("style")[0][1]), ("script", parsed.all("script")[1][1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_script_parses():
    subprocess.run(["node", "--check", PARTS / "viewer.js"], check=True)


def test_what_the_page_holds(tmp_path):
    chosen = read_traces(write(tmp_path / "x.jsonl", [row(), row(key=[2, "t0", 1], reward=None)]), 10)
    [group] = page_data("x", chosen, Origin(None, "block", 4))["groups"]
    first, second = group["samples"]
    assert group["title"] == "RL step 2 · t0" and len(group["prompts"]) == 1
    assert (first["name"], second["name"]) == ("0", "1")
    assert (first["reward"], second["reward"], first["advantage"]) == (1.0, None, 0.5)
    assert first["steps"] == [2, 1, 2, 3, 4, 0, 0] and first["num_steps"] == 4 and first["length"] == 5
    assert first["logprobs"][:5] == [-0.1, -0.2, -0.3, -0.4, -0.5]
    assert first["block"] == [3, 4]


def test_ids_stand_once_in_the_vocabulary(tmp_path):
    data = page_data("x", read_traces(write(tmp_path / "x.jsonl", [row()] * 3), 10), Origin(None, None, None))
    ids = [token_id for token_id, _, _ in data["vocabulary"]]
    [group] = data["groups"]
    assert sorted(ids) == [1, 2, *range(5, 14)]
    assert [ids[i] for i in group["prompts"][0]] == row()["prompt_ids"]
    assert all([ids[i] for i in sample["tokens"]] == row()["canvas_ids"] for sample in group["samples"])


def test_numbers_that_json_has_not_are_left_out(tmp_path):
    bad = row(canvas_logprobs=[float("nan"), -float("inf"), -1.0, None, 0.0, 0.0, 0.0], reward=float("nan"))
    page = build_page("x", read_traces(write(tmp_path / "x.jsonl", [bad]), 1), Origin(None, None, None))
    sample = data_of(page)["groups"][0]["samples"][0]
    assert sample["logprobs"][:4] == [None, None, -1.0, None] and sample["reward"] is None


@pytest.mark.parametrize(
    ("attention", "steps", "expected"),
    [
        ("block", [1] * 8, 3),
        ("full", [1] * 8, 4),
        (None, [2, 1, 2, 3, 4, 3, 4, 5], 3),
        (None, [2, 1, 2, 1, 4, 3, 4, 5], 4),
        (None, [0] * 8, 3),
    ],
)
def test_where_the_first_block_ends(attention, steps, expected):
    trace = Trace.from_row(row(canvas_ids=[3] * 8, canvas_step_map=steps, canvas_logprobs=None))
    assert trace.first_block_tokens(4, attention) == expected


def test_blocks_without_a_known_place_are_not_drawn(tmp_path):
    samples = {"entry": "e", "task": "t", "prompt": "2+2", "token_ids": [3, 4], "step_map": [1, 2]}
    chosen = read_traces(write(tmp_path / "x.jsonl", [samples]), 1)
    data = page_data("x", chosen, Origin(None, "block", 4))
    assert data["groups"][0]["samples"][0]["block"] is None and "--block-size" in data["notes"][-1]
    assert page_data("x", chosen, Origin(None, "full", 8))["groups"][0]["samples"][0]["block"] == [8, 8]


def test_block_size_by_option_row_and_run(tmp_path):
    chosen = read_traces(write(tmp_path / "x.jsonl", [row(block_size=2)]), 1)

    def size(origin, forced=None):
        return page_data("x", chosen, origin, forced)["groups"][0]["samples"][0]["block"][1]

    assert size(Origin(None, "block", 8)) == 2
    assert size(Origin(None, "block", 8), forced=4) == 4


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
def test_rollouts_as_the_sampler_writes_them(family, tmp_path):
    model = tiny_model(family)
    sampler = Sampler(model, SamplingConfig(max_new_tokens=12, block_size=4, stop_ids=[]))
    prompts = [[5, 6, 7], [8, 9]]
    rollouts = sampler.generate(prompts, n=2, keys=[("eval", t, j) for t in "ab" for j in range(2)])
    path = tmp_path / "x.jsonl"
    path.write_text("".join(rollout.to_json() + "\n" for rollout in rollouts))
    chosen = read_traces(path, 10)
    assert list(chosen.groups) == ["eval/a", "eval/b"]
    traces = [trace for group in chosen.groups.values() for trace in group]
    for r, trace in zip(rollouts, traces, strict=True):
        assert (trace.ids, trace.steps, trace.prompt) == (r.canvas_ids, r.canvas_step_map, r.prompt_ids)
        assert trace.first_block_tokens(4, model.attention) == (
            4 if model.attention == "full" else 4 - len(trace.prompt)
        )


@pytest.mark.parametrize(("limit", "shown"), [(12, 12), (11, 10), (6, 6), (4, 4), (3, 2), (1, 1)])
def test_the_limit_takes_whole_groups_from_all_over_the_file(tmp_path, limit, shown):
    rows = [row(step=s, key=[s, "t", j], task="t") for s in range(6) for j in range(2)]
    chosen = read_traces(write(tmp_path / "x.jsonl", rows), limit)
    assert sum(map(len, chosen.groups.values())) == shown
    assert (chosen.num_samples, chosen.num_groups) == (12, 6)
    titles = list(chosen.groups)
    assert titles[-1] == "RL step 5 · t" and (limit < 4 or titles[0] == "RL step 0 · t")
    notes = page_data("x", chosen, Origin(None, "block", 4))["notes"]
    assert notes == ([] if shown == 12 else [f"Shows {shown} of 12 samples ({len(titles)} of 6 groups, spread over the "
                                             "file): --limit takes more."])  # fmt: skip


def test_a_line_that_is_still_being_written_is_left_out_and_said(tmp_path):
    path = write(tmp_path / "x.jsonl", [row()])
    path.write_text(path.read_text() + '{"step": 3, "ta')
    chosen = read_traces(path, 5)
    assert chosen.unfinished and chosen.num_samples == 1
    assert "still being written" in page_data("x", chosen, Origin(None, "block", 4))["notes"][0]


def without(*names):
    return {name: value for name, value in row().items() if name not in names}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no sample: it is empty"),
        ("\n\n", "holds no sample"),
        (json.dumps(row()) + "\nnot json\n", "line 2 is not valid JSON"),
        ("[1, 2]\n", "line 1 holds a list, not a JSON object"),
        (json.dumps(without("canvas_step_map")) + "\n", "line 1 has no step_map .*output_unmasking_history=true"),
        (json.dumps(without("canvas_ids")) + "\n", "line 1 has no canvas_ids"),
        (json.dumps(row(canvas_step_map=[1])) + "\n", "line 1 has 7 canvas_ids but 1 steps"),
        (json.dumps(row(canvas_step_map="1")) + "\n", "canvas_step_map that is no list"),
        (json.dumps(row(canvas_step_map=[-1] * 7)) + "\n", "line 1 has -1 in canvas_step_map"),
        (json.dumps(row(canvas_ids=[1.5] * 7)) + "\n", "line 1 has 1.5 in canvas_ids"),
        (json.dumps(row(canvas_logprobs=[0.0])) + "\n", "canvas_logprobs that is no list of 7"),
        (json.dumps(row(num_response_tokens=9)) + "\n", "num_response_tokens 9; it must be between 0 and 7"),
        (json.dumps(row(num_steps="4")) + "\n", "num_steps '4'; it must be a whole number"),
        (
            json.dumps(row(num_steps=10**12)) + "\n",
            "num_steps 1000000000000; it must be a whole number from 0 to 100,000",
        ),
        (json.dumps(row(canvas_step_map=[10**12] * 7)) + "\n", "has 1000000000000 in canvas_step_map; whole numbers"),
        (json.dumps(row(canvas_ids=[10**400] * 7)) + "\n", r"has 10{36}\.\.\. in canvas_ids"),
        (json.dumps(row(prompt_ids=[True])) + "\n", "has True in prompt_ids"),
        ("[" * 100_000 + "\n", "line 1 is not valid JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1 is not valid JSON"),
        (json.dumps(row(num_response_tokens=10**4000)) + "\n", r"num_response_tokens 10{36}\.\.\."),
        ("\x1b[2J\n", "line 1 is not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, said, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    assert main([str(path), "-o", str(tmp_path / "out.html")]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.startswith(f"error: {path}") and error.count("\n") == 1
    assert not (tmp_path / "out.html").exists()


HOSTILE = {
    "reward": 10**400, "advantage": -(10**400), "canvas_logprobs": [10**400, "x", None, [], {}, True, 1e308],
    "block_size": 0, "answer": ["a"], "key": [["a" * 50], {}, None], "finish_reason": {"a": 1}, "task": [[]],
    "step": {},
}  # fmt: skip


def test_values_that_cannot_be_shown_are_left_out(tmp_path, capsys):
    rows = [row(**{name: value}) for name, value in HOSTILE.items()]
    rows += [row(block_size=10**12), row(block_size=-4), row(reward=True), row(reward=1e308)]
    path, out = write(tmp_path / "x.jsonl", rows), tmp_path / "x.html"
    assert main([str(path), "-o", str(out)]) == 0
    samples = [sample for group in data_of(out.read_text())["groups"] for sample in group["samples"]]
    assert len(samples) == len(rows)
    assert all(sample["reward"] is None or sample["reward"] <= 1e308 for sample in samples)


def test_a_run_folder_is_taken_for_its_samples(run_folder, tmp_path, capsys):
    assert main([str(run_folder), "-o", str(tmp_path / "a.html")]) == 0
    (run_folder / "rollouts.jsonl").rename(run_folder / "samples.jsonl")
    assert main([str(run_folder), "-o", str(tmp_path / "b.html")]) == 0
    texts = [(tmp_path / name).read_text() for name in ("a.html", "b.html")]
    assert texts[0] == texts[1] and data_of(texts[0])["name"] == run_folder.name
    (run_folder / "samples.jsonl").unlink()
    assert main([str(run_folder)]) == 2
    assert "has no rollouts.jsonl (rl.py) and no samples.jsonl (eval.py)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config", ["rollout: 3\nmodel: x\n", "rollout:\n  block_size: 0\n", "[]", f"model: {'x' * 5000}\n"]
)
def test_a_config_of_another_shape_is_no_traceback(run_folder, config, capsys):
    (run_folder / "config.yaml").write_text(config)
    assert main([str(run_folder), "-o", str(run_folder / "a.html")]) == 0


def test_a_missing_file_a_bad_tokenizer_and_a_bad_place_are_reported(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [row()])
    for arguments, said in (
        (["gone.jsonl"], "gone.jsonl: no such file"),
        ([str(path), "--tokenizer", str(tmp_path)], "has no config.json: --tokenizer takes a checkpoint"),
        ([str(path), "-o", str(tmp_path / "no" / "x.html")], "cannot be written"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    for bad in (["--limit", "0"], ["--block-size", "x"]):
        with pytest.raises(SystemExit):
            main([str(path), *bad])
        assert "no whole number from 1 on" in capsys.readouterr().err


def test_an_empty_answer_is_a_page_too(tmp_path):
    empty = row(canvas_ids=[], canvas_step_map=[], canvas_logprobs=[], num_response_tokens=0, num_steps=0)
    data = data_of(build_page("x", read_traces(write(tmp_path / "x.jsonl", [empty]), 1), Origin(None, "block", 4)))
    assert data["groups"][0]["samples"][0]["tokens"] == []


def test_texts_of_byte_level_pieces():
    letters = ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))} | {"Ġthe": 300, "Ċ": 301}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    text_of = token_texts(fast)
    assert text_of(300) == (" the", "text")
    assert text_of(301) == ("\n", "text")
    assert text_of(fast.eos_token_id) == ("<|end|>", "special")
    assert text_of(9999) == ("9999", "id")
    word = "é😀"
    pieces = ["".join(piece) for piece, _ in ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)]
    parts = [text_of(vocabulary[letter]) for letter in pieces[0]]
    assert {kind for _, kind in parts} == {"bytes"}
    assert bytes.fromhex("".join(text for text, _ in parts)).decode() == word


def test_texts_of_sentencepiece_pieces():
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "<0xE4>": 1, "x": 2}, unk_token="x"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
    )
    text_of = token_texts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [text_of(i) for i in range(3)] == [(" the", "text"), ("e4", "bytes"), ("x", "text")]


@pytest.fixture
def run_folder(tmp_path):
    """A run of the tiny model: rollouts, config.yaml and ckpt/optimized."""
    shutil.copytree(ROOT / "configs" / "tiny_model", tmp_path / "ckpt" / "optimized")
    (tmp_path / "config.yaml").write_text("rollout:\n  block_size: 2\nmodel:\n  pretrained_model: nowhere\n")
    write(tmp_path / "rollouts.jsonl", [row()])
    return tmp_path


def test_the_tokenizer_is_the_runs(run_folder):
    path = run_folder / "rollouts.jsonl"
    origin = find_origin(path, None, None)
    assert (origin.attention, origin.block_size, origin.notes) == ("block", 2, ())
    assert token_texts(origin.tokenizer)(4) == ("\\boxed{", "text")
    assert find_origin(path, None, 8).block_size == 8
    shutil.rmtree(run_folder / "ckpt")
    model = ROOT / "configs" / "tiny_model"
    (run_folder / "config.yaml").write_text(f"model:\n  pretrained_model: {model}\n")
    origin = find_origin(path, None, None)
    assert (
        origin.tokenizer is not None
        and origin.block_size == json.loads((model / "config.json").read_text())["block_size"]
    )
    (run_folder / "config.yaml").unlink()
    origin = find_origin(path, None, None)
    assert origin.tokenizer is None and "shown as ids" in origin.notes[0]


def test_a_broken_checkpoint_in_the_run_folder_leaves_ids(run_folder):
    (run_folder / "ckpt" / "optimized" / "config.json").write_text('{"model_type": "gpt2"}')
    origin = find_origin(run_folder / "rollouts.jsonl", None, None)
    assert origin.tokenizer is None and "gpt2" in origin.notes[0] and "--tokenizer" in origin.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "script"), [(".", "sample/get_trace_viewer.py"), ("sample", "get_trace_viewer.py")])
def test_the_command_runs_from_where_it_is_typed(run_folder, folder, script):
    out = run_folder / "trace.html"
    command = [sys.executable, script, str(run_folder / "rollouts.jsonl"), "-o", str(out)]
    done = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{out}: 1 samples") and done.stderr == ""
    assert len(data_of(out.read_text(encoding="utf-8"))["groups"]) == 1


EDITS = {"step": [1, 1, 2, 3, 3, 4], "place": [1, 2, 1, 0, 1, 2], "token": [20, 12, 99, 10, 11, 12]}
EDITS |= {"action": [20, 12, -1, 10, 11, 12], "logprob": [-1.0, -0.5, 0.0, -0.1, -0.2, -0.3]}


def edited_row(**events):
    return row(canvas_ids=[10, 11, 12, 1], canvas_step_map=[3, 3, 4, 0], canvas_logprobs=[-0.1, -0.2, -0.3, 0.0],
               num_response_tokens=3, events=EDITS | events)  # fmt: skip


def test_the_page_holds_every_write_of_an_edited_answer(tmp_path):
    file = write(tmp_path / "rollouts.jsonl", [edited_row(), row(task="t1")])
    data = page_data("name", read_traces(file, 9), Origin(None, None, None))
    (edited,), (plain,) = (group["samples"] for group in data["groups"])
    steps, places, tokens, logprobs = edited["events"]
    assert (steps, places) == (EDITS["step"], EDITS["place"]) and logprobs == [-1.0, -0.5, None, -0.1, -0.2, -0.3]
    assert [i if i < 0 else data["vocabulary"][i][0] for i in tokens] == [20, 12, -1, 10, 11, 12]
    assert plain["events"] is None


def test_events_that_are_not_the_canvas_are_named_with_their_line(tmp_path):
    file = write(tmp_path / "rollouts.jsonl", [row(), edited_row(token=[20, 12, 99, 10, 13, 12])])
    with pytest.raises(ValueError, match="line 2 has another token, step or log-probability at place 1"):
        read_traces(file, 9)


@needs_chromium
@pytest.mark.slow
def test_an_overwritten_token_is_struck_in_its_step_and_underlined_after_it(tmp_path):
    again = [*zip(*(EDITS[name] for name in EDITS), strict=True), (4, 1, 15, 15, -0.7)]
    events = dict(zip(EDITS, map(list, zip(*sorted(again), strict=True)), strict=True))
    given = edited_row(**events) | {"canvas_ids": [10, 15, 12, 1], "canvas_step_map": [3, 4, 4, 0]}
    given["canvas_logprobs"] = [-0.1, -0.7, -0.3, 0.0]
    file = write(tmp_path / "rollouts.jsonl", [given])
    page = tmp_path / "trace.html"
    page.write_text(build_page("name", read_traces(file, 9), Origin(None, None, None)))
    seen, complaints = document_of(page)
    assert not complaints and len(re.findall(r'class="tok[^"]*edited', seen)) == 1
    assert re.search(r'<s class="old">11.*?</s>15', seen)
    assert "1 overwritten, 1 chosen again" in seen and ">masked again</dt><dd>1<" in seen.replace(
        ' class="undefined"', ""
    )


# One block of four; 7 deletes, 8 inserts: 10 20 M M, then 20 M M M, then M 20 M M, then 11 20 12 13.
MOVES = {"step": [1, 1, 2, 2, 3, 3, 4, 4, 4], "place": [0, 1, 0, 1, 0, 1, 0, 2, 3]}
MOVES |= {"token": [10, 20, 20, 99, 99, 20, 11, 12, 13], "action": [10, 20, 7, -1, 8, -1, 11, 12, 13]}
MOVES |= {"logprob": [-0.1, -0.2, -0.3, 0.0, -0.4, 0.0, -0.5, -0.6, -0.7], "source": [-1, -1, 1, -1, -1, 0, -1, -1, -1]}
MOVES |= {"delete_insert_ids": [7, 8]}
MOVED = {"canvas_ids": [11, 20, 12, 13], "canvas_step_map": [4, 1, 4, 4], "num_response_tokens": 4}
MOVED |= {"canvas_logprobs": [-0.5, -0.2, -0.6, -0.7], "events": MOVES, "prompt_ids": [5] * 4}


def test_the_page_says_of_every_write_whether_it_moved_deleted_or_inserted(tmp_path):
    data = page_data("name", read_traces(write(tmp_path / "a.jsonl", [row(**MOVED)]), 9), Origin(None, None, None))
    *_, tokens, logprobs, kinds = data["groups"][0]["samples"][0]["events"]
    assert [i if i < 0 else data["vocabulary"][i][0] for i in tokens] == [10, 20, 20, -1, -1, 20, 11, 12, 13]
    assert kinds == [0, 0, 2, 1, 3, 1, 0, 0, 0] and logprobs[2:6] == [-0.3, None, -0.4, None]


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("step", "said"), [(2, "0 tokens decided, 1 deleted, 1 moved"), (3, "1 inserted, 1 moved")])
def test_a_step_that_deletes_or_inserts_is_counted_as_such(tmp_path, step, said):
    page = tmp_path / "trace.html"
    traces = read_traces(write(tmp_path / "a.jsonl", [row(**MOVED)]), 9)
    page.write_text(build_page("name", traces, Origin(None, None, None)))
    seen, complaints = document_of(page, f"#step={step}")
    assert not complaints and said in seen and (step != 2 or re.search(r'<s class="old">10.*?</s>20', seen))
