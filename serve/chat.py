"""A chat in the terminal that shows how the answer is unmasked, step by step, with statistics."""

import secrets
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers.utils import logging as transformers_logging

from runtime.text import format_number, print_error, printable
from sample import Rollout, Sampler
from sample.session import Session
from serve.loading import Reader, check, load_sampler, sized
from serve.settings import ChatSettings
from serve.text import TokenTexts

MASK = "\N{MIDDLE DOT}"
_HELP = "/reset forgets the conversation, /quit ends (as Ctrl-D); Ctrl-C stops an answer"
_STYLES = {"new": "bold black on bright_yellow", "masked": "dim", "decided": ""}


class Cell(NamedTuple):
    """A position of the answer as it is shown: its text, and whether it is masked, new or decided."""

    text: str
    state: str


class Chat:
    """A conversation with a model. turns: (role, content), of the system first if there is one."""

    def __init__(self, sampler: Sampler, settings: ChatSettings):
        self.sampler, self.settings = sampler, settings
        sampler.steps_between_polls = 1  # every step is shown
        assert settings.max_sequence_tokens is not None
        self.session: Session = sampler.session(settings.max_sequence_tokens)
        self.reader = Reader(sampler.model, settings)
        self.stop_ids = frozenset(sampler.config.stop_ids or ())
        self.turns: list[tuple[str, str]] = []
        self.reset()

    def reset(self) -> None:
        self.turns = [("system", self.settings.system)] if self.settings.system is not None else []

    def answer(self, question: str, show: Callable[[list[Cell]], None]) -> Rollout:
        """Asks, shows the cells of the answer after every step, and adds both turns to the conversation. ValueError: a
        conversation that leaves no room. An answer that KeyboardInterrupt stops leaves the conversation as it was."""
        turns = [*self.turns, ("user", question)]
        prompt = self.reader.chat(turns).ids
        room = min(self.sampler.config.max_new_tokens, self.session.sequence_tokens - len(prompt))
        if room < 1:
            raise ValueError(f"the conversation has {len(prompt)} tokens, which leaves no room: /reset begins anew.")
        seed = secrets.randbits(62) if self.settings.seed is None else self.settings.seed
        (index,) = self.session.add(prompt, max_new_tokens=room, seed=seed)
        try:
            rollout = self._until_end(index, show)
        finally:
            self.session.cancel(index)
        self.turns = [*turns, ("assistant", self.text(rollout))]
        return rollout

    def _until_end(self, index: int, show: Callable[[list[Cell]], None]) -> Rollout:
        while True:
            updates = self.session.poll()
            for update in updates:
                if update.rollout is not None:
                    show(list(self.cells(update.rollout.token_ids, update.rollout.step_map, newest=0)))
                    return update.rollout
            show(list(self.cells(*self.session.canvas(index))))

    def cells(self, ids: list[int], step_map: list[int], newest: int | None = None) -> Iterator[Cell]:
        """Of an answer as far as it is begun: the block that is being decided, and those before. newest: the step whose
        tokens are new; None = the last one."""
        last = max(step_map, default=0) if newest is None else newest
        begun = max((i + 1 for i, step in enumerate(step_map) if step), default=0)
        b = self.sampler.config.block_size or 1
        texts = TokenTexts(self.reader.tokenizer)
        for token_id, step in list(zip(ids, step_map, strict=True))[: -(-begun // b) * b]:
            if token_id in self.stop_ids:
                return
            if step == 0:
                texts = TokenTexts(self.reader.tokenizer)
                yield Cell(MASK, "masked")
            else:
                yield Cell(texts.add(token_id), "new" if step == last else "decided")

    def text(self, rollout: Rollout) -> str:
        """An answer without the stop id that ends it."""
        ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
        decoded: str = self.reader.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded


def drawn(cells: list[Cell]) -> Text:
    text = Text()
    for cell in cells:
        text.append(printable(cell.text), _STYLES[cell.state])
    return text


def statistics(rollout: Rollout, seconds: float) -> str:
    """One line below an answer."""
    tokens, steps = len(rollout.token_ids), rollout.num_steps
    return (
        f"{tokens} tokens in {steps} steps, {format_number(tokens / max(1, steps))} a step, "
        f"{format_number(tokens / max(seconds, 1e-9))} a second; "
        + ("ended by itself" if rollout.finish_reason == "stop" else "cut at max_new_tokens")
    )


def converse(chat: Chat, console: Console) -> None:
    """Reads questions and shows answers until /quit or the end of the input. Without a terminal only the answers are
    printed, on standard output."""
    live = console.is_terminal
    while True:
        try:
            question = console.input("[bold]> [/bold]") if live else input()
        except (EOFError, KeyboardInterrupt):
            return
        if not question.strip():
            continue
        if question.startswith("/"):
            if question.strip() in ("/quit", "/exit"):
                return
            if question.strip() == "/reset":
                chat.reset()
            console.print(
                "the conversation begins anew" if question.strip() == "/reset" else _HELP, style="dim", highlight=False
            )
            continue
        try:
            _show_answer(chat, console, question)
        except KeyboardInterrupt:
            console.print("stopped; the question is forgotten", style="dim")
        except ValueError as error:
            print_error(str(error))


def _show_answer(chat: Chat, console: Console, question: str) -> None:
    begun = time.monotonic()
    if not console.is_terminal:
        console.print(printable(chat.text(chat.answer(question, lambda cells: None))), markup=False, highlight=False)
        return
    with Live(console=console, refresh_per_second=30, vertical_overflow="visible") as view:
        frames = count()

        def show(cells: list[Cell]) -> None:
            view.update(drawn(cells), refresh=next(frames) == 0)  # a fast answer shows one frame before its last, too

        rollout = chat.answer(question, show)
    console.print(statistics(rollout, time.monotonic() - begun), style="dim", highlight=False)


def run(settings: ChatSettings) -> None:
    """The whole chat. ValueError or OSError for users' mistakes."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    console = Console()
    spec = check(settings)
    settings = sized(settings, spec)
    sampler = load_sampler(settings, spec, max_slots=1)
    if console.is_terminal:
        console.print(f"{settings.model} ({sampler.model.family} on {sampler.model.device}). {_HELP}")
    converse(Chat(sampler, settings), console)
