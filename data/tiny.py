"""The built-in task of sorting: eight digits in order. Two cores learn it, by SFT on 120 examples first and then from
reward alone.

A question is `23731784=`, its answer `12334778`, the completion that earns the reward `\\boxed{12334778}`. The files
tiny_sft, tiny_train and tiny_test have the schema of any user's files. They are split by the multiset of the digits,
and no multiset occurs twice: no answer of the test, in whatever order of digits, is seen in training.

This file imports nothing of the project, so `reward.function: data/tiny.py:tiny_reward` loads from its path alone.
"""

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

NUM_DIGITS = 8
SIZES = {"tiny_test": 256, "tiny_sft": 120, "tiny_train": 8000}
SPECIAL_TOKENS = ("<pad>", "<mask>", "<eos>", "<unk>")
TEXT_TOKENS = ("\\boxed{", *"0123456789", *"}=+-*/?!;,.:()<>[]{^\\_x \n")


def tiny_reward(
    prompts: list[str], completions: list[str], *, ground_truth_answer: list[str | None], **columns: Any
) -> list[float | None]:
    """1.0 for each completion whose text before the first `<eos>` is exactly the boxed answer, else 0.0; None (left
    out) without an answer."""
    return [
        None if answer is None else float(completion.split("<eos>", 1)[0] == f"\\boxed{{{answer}}}")
        for completion, answer in zip(completions, ground_truth_answer, strict=True)
    ]


def tiny_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each file by its name."""
    draw = random.Random(f"tiny-{seed}")
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    for name, size in SIZES.items():
        rows[name] = []
        while len(rows[name]) < size:
            digits = "".join(draw.choices("0123456789", k=NUM_DIGITS))
            answer = "".join(sorted(digits))
            if answer in seen:
                continue
            seen.add(answer)
            if name == "tiny_sft":
                rows[name].append({"prompt": f"{digits}=", "response": f"\\boxed{{{answer}}}"})
            else:
                rows[name].append({"question": f"{digits}=", "ground_truth_answer": answer})
    return rows


class Words(NamedTuple):
    """A tokenizer of whole words. special, text: its tokens, in the order of their ids; word: what is one in a text (a
    regular expression); roles: pad, mask, eos and unk, each a special token."""

    special: tuple[str, ...]
    text: tuple[str, ...]
    word: str
    roles: dict[str, str]


WORDS = Words(SPECIAL_TOKENS, TEXT_TOKENS, r"\\boxed\{|[\s\S]", {token[1:-1]: token for token in SPECIAL_TOKENS})


def write_tokenizer(folder: Path, words: Words = WORDS) -> None:
    """Writes tokenizer.json and tokenizer_config.json, by default those of configs/tiny_model: 40 ids, `\\boxed{` being
    one of them.

    Every id decodes to its own text and nothing is put between, so decoding gives back what was encoded; a word that
    has no id becomes the unk token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate((*words.special, *words.text))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words.roles["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(words.word), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in words.special])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        **{f"{role}_token": token for role, token in words.roles.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), indent=1) + "\n")
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file beside itself and renames it: readers see the old text or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
