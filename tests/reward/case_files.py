"""Cases as text files (tests/reward/cases), so that programs and LaTeX stand there as they are written.

Programs: `=== name` begins a case, `--- part` one of its parts. Answers: `== kind`, then `given  is  true` and
`given  isnt  true`, each sign between two double spaces.
"""

from pathlib import Path

CASES = Path(__file__).with_name("cases")


def programs(name):
    """{case: {part: text}} of cases/NAME.txt."""
    found = {}
    for line in (CASES / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        if line.startswith("=== "):
            case = line[4:]
            assert case not in found, case
            found[case] = {}
        elif line.startswith("--- "):
            found[case][line[4:]] = lines = []
        else:
            lines.append(line)
    return {case: {part: "\n".join(lines) for part, lines in parts.items()} for case, parts in found.items()}


def answers(name):
    """{kind: (pairs that are equal, pairs that are not)} of cases/NAME.txt."""
    found = {}
    for line in (CASES / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        if line.startswith("== "):
            same, different = found.setdefault(line[3:], ([], []))
            continue
        pair, pairs = line.split("  is  "), same
        if len(pair) == 1:
            pair, pairs = line.split("  isnt  "), different
        given, true = pair
        pairs.append((given, true))
    return found
