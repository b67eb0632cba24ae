"""The data sets that `data/download_data.py` knows by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a data set lives on the hub, or, with `pictures`, on GitHub.

    `data_type` is what to train or evaluate it as ("sft": prompt and response). `revision` is the commit that everybody
    gets; None takes the newest one, which the first download then records. `converter` names the function of
    data/download_data.py that turns the file into the project's schema, None where it has it already. `gated`: the hub
    gives the file only to accounts that accepted its terms. pictures: the repository's folder that the rows' pictures
    are in; they come too, into a folder of the same name beside the data.
    """

    repo: str
    file: str
    data_type: str
    about: str
    revision: str | None = None
    converter: str | None = None
    gated: bool = False
    pictures: str | None = None


def _gen_verse(name: str, split: str, data_type: str, about: str) -> Source:
    return Source(f"Gen-Verse/{name}", f"{split}/{name}.json", data_type, about)


def _dllm_rl(name: str, data_type: str, about: str) -> Source:
    commit = "10b4fd1cba83e4496c20585dc2fd01dc02f20255"
    return Source("Gen-Verse/dLLM-RL", f"data/{name}.json", data_type, about, commit, pictures="data/images")


CATALOG = {
    "MATH_train": _gen_verse("MATH_train", "train", "math", "competition mathematics, for training"),
    "PrimeIntellect": _gen_verse("PrimeIntellect", "train", "code", "programming problems with tests, for training"),
    "demon_openr1math": _gen_verse("demon_openr1math", "train", "sft", "worked solutions, for SFT"),
    "MATH500": _gen_verse("MATH500", "test", "math", "500 problems of MATH"),
    "GSM8K": _gen_verse("GSM8K", "test", "math", "grade school word problems"),
    "AIME2024": _gen_verse("AIME2024", "test", "math", "30 problems of AIME 2024"),
    "LiveBench": _gen_verse("LiveBench", "test", "code", "programming problems of LiveBench"),
    "LiveCodeBench": _gen_verse("LiveCodeBench", "test", "code", "programming problems of LiveCodeBench"),
    "MBPP": _gen_verse("MBPP", "test", "code", "basic Python problems with asserts"),
    "HumanEval": _gen_verse("HumanEval", "test", "code", "164 functions to complete"),
    "AMC23": Source(
        "math-ai/amc23", "test-00000-of-00001.parquet", "math", "40 problems of AMC 2023", converter="amc23_rows"
    ),
    "GPQA": Source(
        "Idavidrein/gpqa",
        "gpqa_diamond.csv",
        "option",
        "198 graduate questions of GPQA diamond",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        converter="gpqa_rows",
        gated=True,
    ),
    "SEEDBench_IMG_32": _dllm_rl("SEEDBench_IMG_32", "mmu", "32 questions about pictures (SEED-Bench)"),
    "sft_test_v": _dllm_rl("sft_test_v", "sft", "answered questions about pictures, most of which are not given"),
}
