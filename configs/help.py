"""What --help prints."""

import dataclasses
import shutil
import sys
import textwrap
from typing import Any

from configs.commands import Command, effect_in, reads
from configs.fields import flat_fields, kind_of

_INTRODUCTION = """\
Any key may be given on the command line as section.key=value. Listed: key,
type, default, what another value changes (result, speed, output, length; all
but result may change when a run is resumed), meaning."""
_EXAMPLES = """
dLLM-RL's names of keys are read too (docs/from_dllm_rl.md).

examples:
  python rl.py config=configs/rl_tiny.yaml
  python rl.py config=configs/rl_trado.yaml model.pretrained_model=/models/TraDo-4B rollout.temperature=0.8
  python eval.py config=configs/trado_eval.yaml model.pretrained_model=/models/TraDo-4B
  python rl.py config=configs/rl_trado.yaml dry_run=true"""


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def help_text(usage: str, command: Command | None = None, width: int | None = None) -> str:
    """Every key of the schema that `command` reads, with type, default and meaning: a line each, or wrapped to `width`
    columns."""
    lines = [f"usage: {usage}", "", *_INTRODUCTION.splitlines(), ""]
    for name, item in flat_fields():
        if command is None or reads(command, name):
            lines += _entry(name, item, effect_in(command, name, item.metadata["changes"]), width)
    return "\n".join([*lines, *_EXAMPLES.splitlines()])


def _entry(name: str, item: dataclasses.Field, changes: str, width: int | None) -> list[str]:
    factory: Any = item.default_factory
    default = factory() if item.default is dataclasses.MISSING else item.default
    choices = f" [{' | '.join(item.metadata['choices'])}]" if item.metadata["choices"] else ""
    meaning = f"{item.metadata['help']}{choices}"
    if width is None:
        return [f"  {name:<44} {kind_of(item):<18} {default!r:<26} {changes:<8} {meaning}"]
    indented = textwrap.wrap(meaning, max(20, width - 1), initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [f"  {name} ({kind_of(item)}) = {default!r}, changes {changes}", *indented]
