"""Math rewards: the last box of a completion against the true answer, by math-verify, in processes under a hard
deadline."""

import re
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from reward.base import Reward, column, names_of, require_column
from reward.math.numbers import decimals_agree, plain_number
from reward.math.options import chosen_option
from reward.math.truth import answer_text, final_answer, is_solution
from reward.text import stated_answer
from reward.workers.pool import Reply, WorkerPool

CPU_SECONDS = 10.0
MEMORY_BYTES = 4 << 30
MAX_ANSWER_CHARACTERS = 2000
CACHED_VERDICTS = 1 << 16

Key = tuple[str | None, str]

_INTEGER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)", re.ASCII)


def wall_limit(cpu_seconds: float) -> float:
    """Wall-clock seconds that an answer may take before its worker counts as stuck, however busy the machine is."""
    return 60.0 + 30.0 * cpu_seconds


class MathGrader:
    """Grades answers in `workers` processes (0 = one a core); an answer has `cpu_seconds` of processor time, then it is
    wrong."""

    def __init__(self, *, workers: int = 0, cpu_seconds: float = CPU_SECONDS) -> None:
        self.pool = WorkerPool(
            "reward.math.equal:answers_equal",
            workers=workers,
            cpu_seconds=cpu_seconds,
            wall_seconds=wall_limit(cpu_seconds),
            memory_bytes=MEMORY_BYTES,
        )
        self._verdicts: dict[Key, bool] = {}

    def grade(
        self, pairs: Sequence[tuple[str, str]], counts: Counter[str] | None = None, in_box: bool = True
    ) -> list[bool | None]:
        """One verdict for each (completion, answer); None where workers were stopped from outside twice. in_box: an
        answer without a box is none (`stated_answer`).

        `counts` gains `timeout` (and `error`, `stalled`, `died`) for the answers that ended so.
        """
        keys: list[Key] = [(stated_answer(completion, in_box), final_answer(answer)) for completion, answer in pairs]
        verdicts: dict[Key, bool | None] = {
            key: quick_verdict(*key) if key not in self._verdicts else self._verdicts[key]
            for key in dict.fromkeys(keys)
        }
        unknown = [key for key, verdict in verdicts.items() if verdict is None]
        for key, reply in zip(unknown, self.pool.map(unknown), strict=True):
            verdicts[key] = self._settle(key, reply, Counter() if counts is None else counts)
        if len(self._verdicts) > CACHED_VERDICTS:
            self._verdicts.clear()
        self._verdicts.update({key: verdict for key, verdict in verdicts.items() if verdict is not None})
        return [verdicts[key] for key in keys]

    def close(self) -> None:
        self.pool.close()

    def _settle(self, key: Key, reply: Reply, counts: Counter[str]) -> bool | None:
        if reply.status in ("stalled", "died"):
            reply = self.pool.run(*key)
        if reply.status == "ok":
            return bool(reply.value)
        counts[reply.status] += 1
        return None if reply.status in ("stalled", "died") else False


def quick_verdict(prediction: str | None, answer: str) -> bool | None:
    """A verdict that needs no parsing, or None: no box, equal strings, plain numbers, an absurdly long answer."""
    if prediction is None:
        return False
    if prediction == answer:
        return True
    given, true = _INTEGER.fullmatch(prediction), _INTEGER.fullmatch(answer)
    if given and true:
        return _integer(given) == _integer(true)
    numbers = plain_number(prediction), plain_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        rounded = "." in prediction or "." in answer
        return decimals_agree(numbers[0], numbers[1]) if rounded else numbers[0] == numbers[1]
    return False if len(prediction) > MAX_ANSWER_CHARACTERS + 2 * len(answer) else None


def _integer(match: re.Match[str]) -> tuple[bool, str]:
    digits = match[2].replace(",", "").lstrip("0")
    return bool(digits) and match[1] == "-", digits


_default_lock = threading.Lock()


@cache
def _default_grader() -> MathGrader:
    return MathGrader()


def grade_math(completion: str, answer: str) -> bool:
    """Whether the last balanced \\boxed{} of `completion` holds `answer`, or the final answer of a solution.

    An answer that takes more than CPU_SECONDS of processor time or 4 GiB is wrong. Works from any thread and process;
    the worker processes start with the first answer that needs them and end with this process.
    """
    if not isinstance(answer, str):
        raise ValueError(f"grade_math needs the true answer as a string, got {answer!r}; drop tasks without an answer")
    if not answer_text(answer):
        return False
    with _default_lock:
        grader = _default_grader()
    (verdict,) = grader.grade([(completion, answer)])
    if verdict is None:
        warnings.warn(
            f"no verdict on an answer to {answer!r}: its worker was stopped twice; counted as wrong", stacklevel=2
        )
    return bool(verdict)


class OptionReward(Reward):
    """1.0 where the answer (`stated_answer`) is the letter of the task's `ground_truth_answer` (A, (A), a, A. and its
    text)."""

    verifies = True

    def __init__(self, in_box: bool = True) -> None:
        super().__init__()
        self.in_box = in_box

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        require_column(names_of(rows), "ground_truth_answer", needed_by="the option reward")
        answers = [answer for row in rows if (answer := answer_text(row.get("ground_truth_answer")))]
        others = [answer for answer in answers if chosen_option(answer) is None]
        if others:
            message = (
                f"{len(others)} of {len(answers)} true answers are not the letter of one option, and their completions "
                f"get no reward (the first: {others[0][:60]!r}): data_type=math grades several letters and values"
            )
            if len(others) == len(answers):
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        answers = column(columns, "ground_truth_answer", len(completions), needed_by="the option reward")
        rewards: list[float | None] = []
        for completion, answer in zip(completions, answers, strict=True):
            true = chosen_option(answer_text(answer))
            given = chosen_option(stated_answer(completion, self.in_box) or "")
            self.counts["no_answer"] += true is None
            rewards.append(None if true is None else float(given == true))
        return rewards


class MathReward(Reward):
    """1.0 where the answer (`stated_answer`) equals the task's `ground_truth_answer`, else 0.0; None where the task has
    no answer."""

    verifies = True

    def __init__(self, *, workers: int, timeout_seconds: float, in_box: bool = True) -> None:
        super().__init__()
        self.in_box = in_box
        self.grader = MathGrader(workers=workers, cpu_seconds=timeout_seconds)

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        require_column(names_of(rows), "ground_truth_answer", needed_by="the math reward (or name a reward.function)")
        solutions = [answer for row in rows if is_solution(answer := row.get("ground_truth_answer"))]
        if solutions:
            message = (
                f"{len(solutions)} of {len(rows)} true answers are whole solutions, which no answer equals (the first: "
                f"{str(solutions[0])[:60]!r}): map the column of the final answer with dataset.columns, or put it "
                "behind #### or in \\boxed{} in each solution"
            )
            if len(solutions) == len(rows):
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        answers = column(columns, "ground_truth_answer", len(completions), needed_by="the math reward")
        texts = [answer_text(answer) for answer in answers]
        graded = [i for i, text in enumerate(texts) if text]
        verdicts = self.verdicts([(completions[i], texts[i]) for i in graded])
        rewards: list[float | None] = [None] * len(completions)
        for i, verdict in zip(graded, verdicts, strict=True):
            rewards[i] = None if verdict is None else float(verdict)
        self.counts["no_answer"] += len(completions) - len(graded)
        return rewards

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """One for each (completion, true answer), as of `MathGrader.grade`."""
        return self.grader.grade(pairs, self.counts, self.in_box)

    def close(self) -> None:
        self.grader.close()
