"""The engine's thread: what it owes to those who wait when it ends."""

import queue
import time

import pytest
from helpers import tiny_model

from models import Prompt
from sample import Sampler, SamplingConfig
from sample.draw import Drawing
from serve.engine import Engine, Job, Overloaded, Unavailable


def engine_of(limit=8, sabotage=lambda session: None):
    def load():
        sampler = Sampler(tiny_model("sdar"), SamplingConfig(max_new_tokens=32, max_slots=2, stop_ids=()))
        made = sampler.session

        def session(tokens):
            own = made(tokens)
            sabotage(own)
            return own

        sampler.session = session
        return sampler

    engine = Engine(load, 64, limit)
    engine.start()
    while not engine.ready and engine.error is None:
        time.sleep(0.005)
    return engine


def job(n=1):
    events = queue.Queue()
    return Job([Prompt([5, 6, 7])], n, 32, 0, Drawing(0.0, 0, 1.0), events.put), events


@pytest.mark.slow
def test_updates_of_all_choices_come_and_the_limit_is_free_again():
    engine = engine_of(limit=4)
    mine, events = job(n=4)
    engine.submit(mine)
    with pytest.raises(Overloaded):
        engine.submit(job()[0])
    with pytest.raises(ValueError, match="at a time"):
        engine.submit(job(n=5)[0])
    ended = set()
    while len(ended) < 4:
        event = events.get(timeout=20)
        assert event.error is None
        if event.update.rollout is not None:
            ended.add(event.choice)
    engine.submit(job(n=4)[0])
    engine.stop()


def test_an_error_of_a_step_is_told_to_everyone_who_waits():
    def sabotage(session):
        poll, calls = session.poll, []

        def fails():
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return poll()

        session.poll = fails

    engine = engine_of(sabotage=sabotage)
    jobs = [job() for _ in range(3)]
    for mine, _ in jobs:
        engine.submit(mine)
    for _, events in jobs:
        while (event := events.get(timeout=20)).error is None:
            pass
        assert isinstance(event.error, Unavailable)
    assert str(engine.error) == "out of memory" and not engine.ready
    with pytest.raises(Unavailable):
        engine.submit(job()[0])


def test_a_stop_ends_what_is_open_and_what_has_only_just_come():
    engine = engine_of()
    mine, events = job(n=4)
    engine.submit(mine)
    engine.stop()
    while (event := events.get(timeout=20)).error is None:
        pass
    assert isinstance(event.error, Unavailable)
