"""Speed of grading: answers a second for math and code.

    python benchmarks/reward.py [--workers 2] [--answers 2000] [--programs 100]

Math: no two answers alike, so that no verdict is remembered; half of them are wrong. Integers need no parsing, the
others go through math-verify. Code: small programs, each in its sandboxes; where HumanEval lies beside the repository
its 164 canonical solutions are timed too. Worker processes are started before the clock.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reward.code.reward import CodeGrader
from reward.code.sandbox import INSTALL_HINT, find_isolation
from reward.math.reward import MathGrader

HUMAN_EVAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "data" / "HumanEval.json"

FORMS: dict[str, tuple[Callable[[int], str], Callable[[int], str]]] = {
    "integers": (lambda n: str(n), lambda n: str(n)),
    "fractions": (lambda n: f"{2 * n}/{2 * (n + 1)}", lambda n: rf"\frac{{{n}}}{{{n + 1}}}"),
    "roots": (lambda n: rf"\sqrt{{{4 * n}}}", lambda n: rf"2\sqrt{{{n}}}"),
    "polynomials": (lambda n: f"(x+{n})^2", lambda n: f"x^2+{2 * n}x+{n * n}"),
    "intervals": (lambda n: rf"(-\infty, {n}.5)", lambda n: rf"\left(-\infty, \frac{{{2 * n + 1}}}{{2}}\right)"),
    "matrices": (
        lambda n: rf"\begin{{bmatrix}} {n} & 0.5 \end{{bmatrix}}",
        lambda n: rf"\begin{{pmatrix}} {n} & \frac{{1}}{{2}} \end{{pmatrix}}",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--answers", type=int, default=2000, help="of each form")
    parser.add_argument("--programs", type=int, default=100)
    given = parser.parse_args()
    figures: dict[str, Any] = {"workers": given.workers}
    print(f"{'':28}{'answers/s':>12}{'seconds':>10}{'right':>8}")
    for form in FORMS:
        figures[f"math_{form}_per_second"] = math_speed(form, given.answers, given.workers)
    if find_isolation() is None:
        print(f"no code: {INSTALL_HINT}")
    else:
        figures |= code_speed(given.programs, given.workers)
    print(json.dumps(figures))


def math_speed(form: str, answers: int, workers: int) -> float:
    spell, true = FORMS[form]
    grader = MathGrader(workers=workers)
    grader.grade([(rf"\boxed{{\frac{{{n}}}{{2}}}}", str(n / 2)) for n in range(4 * workers)])
    pairs = [(rf"\boxed{{{spell(n)}}}", true(n if n % 2 else n + 3)) for n in range(2, answers + 2)]
    started = time.perf_counter()
    verdicts = grader.grade(pairs)
    seconds = time.perf_counter() - started
    grader.close()
    if verdicts != [n % 2 == 1 for n in range(2, answers + 2)]:
        raise SystemExit(f"wrong verdicts on {form}: the speed means nothing")
    return row(f"math, {form}", len(pairs), seconds, sum(map(bool, verdicts)))


def code_speed(programs: int, workers: int) -> dict[str, Any]:
    grader = CodeGrader(workers=workers)
    function = {"test_list": ["assert f(3) == 9", "assert f(-2) == 4"]}
    script = {"test_input": ["3"], "test_output": ["9"]}
    sets: dict[str, list[tuple[str, Mapping[str, Any]]]] = {
        "functions": [(f"def f(x): return x * x + {n % 2}", function) for n in range(programs)],
        "stdio": [(f"x = int(input())\nprint(x * x + {n % 2})", script) for n in range(programs)],
    }
    if HUMAN_EVAL.is_file():
        tasks = json.loads(HUMAN_EVAL.read_text())
        sets["human_eval"] = [(task["prefix"] + task["canonical_solution"], task) for task in tasks]
    figures: dict[str, Any] = {}
    for name, jobs in sets.items():
        started = time.perf_counter()
        passed = sum(verdict.passed for verdict in grader.grade(jobs))
        seconds = time.perf_counter() - started
        figures[f"code_{name}_per_second"] = row(f"code, {name}", len(jobs), seconds, passed)
        if passed != (len(jobs) if name == "human_eval" else (len(jobs) + 1) // 2):
            raise SystemExit(f"wrong verdicts on {name}: the speed means nothing")
        if name == "human_eval":
            figures |= {"human_eval_seconds": round(seconds, 2), "human_eval_passed": passed}
    return figures


def row(name: str, answers: int, seconds: float, right: int) -> float:
    speed = answers / seconds
    print(f"{name:28}{speed:12.1f}{seconds:10.2f}{right:8}")
    return round(speed, 1)


if __name__ == "__main__":
    main()
