"""A server in this process, for tests: a tiny model behind uvicorn on a free port."""

import threading
import time
from contextlib import contextmanager

import httpx2
import uvicorn
from openai import OpenAI

from serve.api import make_app
from serve.engine import Engine
from serve.loading import check, load_sampler, sized
from serve.server import bind
from serve.settings import ServeSettings


class Running:
    """Its engine, its address, and clients of it."""

    def __init__(self, engine, settings, url):
        self.engine, self.settings, self.url = engine, settings, url
        self.http = httpx2.Client(base_url=url, timeout=60)
        self.client = OpenAI(base_url=f"{url}/v1", api_key=settings.api_key or "none", max_retries=0)

    def post(self, path="/v1/completions", **body):
        return self.http.post(path, json=body)

    def metric(self, name):
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def idle_in(self, seconds=10):
        """Whether all slots and the queue are free within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.engine.running == 0 and self.engine.waiting == 0:
                return True
            time.sleep(0.02)
        return False


@contextmanager
def serving(model_folder, load=None, **settings):
    """load: makes the sampler from settings and spec; default `load_sampler`."""
    shared = {"model": str(model_folder), "device": "cpu", "port": 0, "max_new_tokens": 32, "threshold": 0.4}
    chosen = ServeSettings(**shared | settings)
    spec = check(chosen)
    chosen = sized(chosen, spec)
    listener = bind(chosen.host, 0)
    made = load or load_sampler
    engine = Engine(lambda: made(chosen, spec), chosen.max_sequence_tokens, chosen.max_slots + chosen.max_queue)
    config = uvicorn.Config(make_app(engine, chosen, "tiny"), log_level="error", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    engine.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    running = Running(engine, chosen, f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        while load is None and not engine.ready and engine.error is None:
            time.sleep(0.01)
        yield running
    finally:
        running.client.close()
        running.http.close()
        server.should_exit = True
        thread.join()
        engine.stop()
