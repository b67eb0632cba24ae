"""The thread that owns the model: it loads it, then feeds and polls one `Session` for all requests."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models import DiffusionLM, Prompt
from sample import Sampler
from sample.draw import Drawing
from sample.session import Session, Update


class Overloaded(Exception):
    """The queue is full."""


class Unavailable(Exception):
    """The model is loading, has failed, or is being shut down."""


class Event(NamedTuple):
    """What a job receives: an update of one of its choices, or an error that ends it."""

    choice: int
    update: Update | None
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """n answers to each of some prompts, prompt-major: its choices. deliver is called in the engine's thread."""

    prompts: Sequence[Prompt]
    n: int
    max_new_tokens: int
    seed: int
    drawing: Drawing
    deliver: Callable[[Event], None]
    open: dict[int, int] = field(default_factory=dict)
    """Index in the session -> choice, of answers that are not complete."""

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


class Engine:
    """load: the sampler, called in the thread. sequence_tokens: of prompt and answer. limit: answers that may be open
    at a time, in slots and waiting. on_ready: called with the model once requests are answered; on_error: where the
    thread ends by an error.

    session: None until the model is loaded. error: what ended the thread.
    """

    def __init__(
        self,
        load: Callable[[], Sampler],
        sequence_tokens: int,
        limit: int,
        on_ready: Callable[[DiffusionLM], None] = lambda model: None,
        on_error: Callable[[], None] = lambda: None,
    ):
        self._load, self.sequence_tokens, self._limit = load, sequence_tokens, limit
        self._on_ready, self._on_error = on_ready, on_error
        self._inbox: queue.SimpleQueue[Callable[[Session], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._outstanding = 0
        self._open: set[Job] = set()
        self._stopping = self._ended = False
        self._jobs: dict[int, Job] = {}
        self.sampler: Sampler | None = None
        self.session: Session | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step; open jobs get an error. A model that is being loaded is not waited
        for."""
        self._stopping = True
        self._inbox.put(None)
        if self.session is not None:
            self._thread.join()

    @property
    def ready(self) -> bool:
        return self.session is not None and self.error is None and not self._stopping

    @property
    def running(self) -> int:
        """Answers in slots."""
        return 0 if self.session is None else self.session.running

    @property
    def waiting(self) -> int:
        """Answers that wait for one, those included that the thread has not seen yet."""
        return self._outstanding - self.running

    @property
    def tokenizer(self) -> Any:
        assert self.sampler is not None
        return self.sampler.model.tokenizer

    def require_ready(self) -> Session:
        """`Unavailable` where no request can be answered now."""
        if self.session is None or not self.ready:
            failed = self.error is not None or self._stopping
            raise Unavailable(
                "the server stops" if failed else "the model is loading: ask again when /health gives 200"
            )
        return self.session

    def submit(self, job: Job) -> None:
        """Queues a job. `Unavailable`, `Overloaded`; ValueError as of `Session.check`."""
        session = self.require_ready()
        for prompt in job.prompts:
            session.check(prompt.ids, job.max_new_tokens)
        if job.choices > self._limit:
            raise ValueError(f"{job.choices} answers in one request: the server takes {self._limit} at a time")
        with self._lock:
            if self._ended:
                raise Unavailable("the server stops")
            if self._outstanding + job.choices > self._limit:
                raise Overloaded(f"{self._outstanding} answers are being written or wait; {self._limit} may")
            self._outstanding += job.choices
            self._open.add(job)
        self._inbox.put(lambda session: self._add(session, job))

    def cancel(self, job: Job, choice: int | None = None) -> None:
        """Ends a job's choice, or all that are open; their slots are free for others."""
        self._inbox.put(lambda session: self._cancel(session, job, choice))

    def _run(self) -> None:
        try:
            self.sampler = self._load()
            self.session = self.sampler.session(self.sequence_tokens)
            self._on_ready(self.sampler.model)
            while not self._stopping:
                self._take(self.session)
                for update in self.session.poll():
                    self._deliver(update)
        except BaseException as error:  # whatever it is, nobody may wait for an answer that does not come
            self.error = error
            self._on_error()
        with self._lock:
            self._ended = True
        for job in self._open:
            job.deliver(Event(0, None, Unavailable("the server stops")))

    def _take(self, session: Session) -> None:
        """Carries out what has come in; waits for it where there is nothing to decode."""
        idle = not (session.running or session.waiting)
        with contextlib.suppress(queue.Empty):
            while (command := self._inbox.get(block=idle)) is not None:
                command(session)
                idle = False

    def _add(self, session: Session, job: Job) -> None:
        for prompt in job.prompts:
            for index in session.add(prompt, job.n, job.max_new_tokens, job.seed, job.drawing):
                job.open[index] = len(job.open)
                self._jobs[index] = job

    def _cancel(self, session: Session, job: Job, choice: int | None) -> None:
        for index in [index for index, own in job.open.items() if choice in (None, own)]:
            session.cancel(index)
            self._close(job, index)

    def _close(self, job: Job, index: int) -> int:
        del self._jobs[index]
        choice = job.open.pop(index)
        with self._lock:
            self._outstanding -= 1
            if not job.open:
                self._open.discard(job)
        return choice

    def _deliver(self, update: Update) -> None:
        job = self._jobs[update.index]
        ended = update.rollout is not None
        choice = self._close(job, update.index) if ended else job.open[update.index]
        job.deliver(Event(choice, update))
