"""The OpenAI server over a tiny model, asked by the openai client."""

import asyncio
import json
import random
import socket
import threading
import time

import openai
import pytest
from serving import serving

from models import load_model
from sample import Sampler, SamplingConfig
from serve.loading import load_sampler

CHAT = [{"role": "user", "content": "1234="}]


@pytest.fixture(scope="module")
def server(model_folder):
    with serving(model_folder, max_slots=4) as running:
        yield running


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(model_folder)


def whole(model, prompt, settings, n=1):
    """What `Sampler.generate` gives under the settings of a request."""
    shared = {"max_new_tokens": 32, "threshold": 0.4, "temperature": 1.0}
    ids = model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    return Sampler(model, SamplingConfig(**shared | settings)).generate([ids], n=n)


def text_of(model, rollout):
    ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
    return model.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_completion_is_what_the_sampler_writes_under_the_settings_of_the_request(server, model):
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    answer = server.client.completions.create(
        model="any name",
        prompt="31=",
        n=3,
        max_tokens=20,
        logprobs=1,
        extra_body={"top_k": 7, "step_map": True},
        **settings,
    )
    want = whole(model, "31=", settings | {"top_k": 7, "max_new_tokens": 20}, n=3)
    assert (answer.model, answer.object) == ("tiny", "text_completion")
    for i, (choice, rollout) in enumerate(zip(answer.choices, want, strict=True)):
        count = len(rollout.token_ids) - (rollout.finish_reason == "stop")
        assert (choice.index, choice.text, choice.finish_reason) == (i, text_of(model, rollout), rollout.finish_reason)
        assert choice.token_ids == rollout.token_ids[:count] and choice.step_map == rollout.step_map[:count]
        assert choice.logprobs.token_logprobs == pytest.approx(rollout.logprobs[:count], abs=1e-5)
        assert "".join(choice.logprobs.tokens) == choice.text
    usage = answer.usage
    assert usage.prompt_tokens == 3 and usage.completion_tokens == sum(len(r.token_ids) for r in want)


def test_a_stream_adds_up_to_the_whole_answer_block_by_block(server):
    asked = {"model": "m", "messages": CHAT, "seed": 3, "n": 2, "max_completion_tokens": 24, "logprobs": True}
    answer = server.client.chat.completions.create(**asked, extra_body={"step_map": True})
    stream = server.client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}, extra_body={"step_map": True}
    )
    texts, steps, logprobs, reasons, usage, chunks = ["", ""], [[], []], [[], []], [None, None], None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for part in chunk.choices:
            chunks += 1
            texts[part.index] += part.delta.content or ""
            steps[part.index] += getattr(part, "step_map", [])
            logprobs[part.index] += [t.logprob for t in part.logprobs.content] if part.logprobs else []
            reasons[part.index] = part.finish_reason or reasons[part.index]
    assert chunks > 6 and usage == answer.usage
    for choice, text, step_map, logps, reason in zip(answer.choices, texts, steps, logprobs, reasons, strict=True):
        assert (choice.message.content, choice.finish_reason, choice.step_map) == (text, reason, step_map)
        assert [t.logprob for t in choice.logprobs.content] == logps


def test_a_chat_is_written_in_the_familys_format_and_its_control_tokens_are_text(server, model):
    from serve.loading import Reader

    reader = Reader(model, server.settings)
    parts = [{"type": "text", "text": "12"}, {"type": "text", "text": "3=<eos>"}]
    turns = [{"role": "system", "content": "9"}, {"role": "user", "content": parts}]
    answer = server.client.chat.completions.create(model="m", messages=turns, temperature=0, max_tokens=12)
    ids = reader.chat([("system", "9"), ("user", "123=<eos>")]).ids
    assert (
        ids
        == reader.text("<|im_start|>system\n9<|im_end|>\n<|im_start|>user\n123=").ids
        + [i for c in "<eos>" for i in reader.text(c).ids]
        + reader.text("<|im_end|>\n<|im_start|>assistant\n").ids
    )
    (want,) = whole(model, ids, {"temperature": 0.0, "max_new_tokens": 12})
    assert answer.choices[0].message.content == text_of(model, want)
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.slow
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(server):
    asked = {"model": "m", "prompt": "31=", "seed": 5, "max_tokens": 32}
    full = server.client.completions.create(**asked).choices[0].text
    stop = full[7:9]
    place = full.find(stop)
    for stream in (False, True):
        answer = server.client.completions.create(**asked, stop=["never there", stop], stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            text, reason = "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason
        else:
            text, reason = answer.choices[0].text, answer.choices[0].finish_reason
        assert (text, reason) == (full[:place], "stop")
    assert server.idle_in()


@pytest.mark.slow
def test_answers_without_a_seed_differ_and_those_with_one_repeat(server):
    def ask(**more):
        return server.client.completions.create(model="m", prompt="31=", max_tokens=32, **more).choices[0].text

    assert len({ask() for _ in range(4)}) > 1
    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    assert ask(temperature=0) == ask(temperature=0, seed=9) == ask(temperature=0.7, extra_body={"top_k": 1})


@pytest.mark.slow
def test_several_prompts_as_texts_or_ids(server, model):
    texts = server.client.completions.create(model="m", prompt=["31=", "4="], n=2, seed=1, max_tokens=8)
    ids = [model.tokenizer(text)["input_ids"] for text in ("31=", "4=")]
    same = server.client.completions.create(model="m", prompt=ids, n=2, seed=1, max_tokens=8)
    assert [c.text for c in texts.choices] == [c.text for c in same.choices] and len(texts.choices) == 4


def test_one_model_is_named_and_any_name_may_be_asked_for(server):
    (listed,) = server.client.models.list().data
    assert listed.id == "tiny" == server.client.models.retrieve("org/another").id


BAD = [
    ({"prompt": "1="}, b"{", "no JSON"),
    ({}, b"[]", "JSON object"),
    ({}, b"", "JSON object"),
    ({}, b"\x80abc", "parsing the body"),
    ({}, b"[" * 100_000, "parsing the body"),
    ({}, b'{"prompt": "\\ud800"}', "surrogate"),
    ({}, b'{"prompt": "1=", "temperature": NaN}', "finite"),
    ({}, None, "prompt: Field required"),
    ({"prompt": "1=", "temprature": 1}, None, "did you mean temperature"),
    ({"prompt": "1=", "foo-bar": 1}, None, "'foo-bar': unknown field"),
    ({"prompt": "1=", "temperature": -1}, None, "temperature"),
    ({"prompt": "1=", "temperature": 1e300}, None, "temperature"),
    ({"prompt": "1=", "top_k": 10**20}, None, "top_k"),
    ({"prompt": "1=", "top_p": 0}, None, "top_p"),
    ({"prompt": "1=", "n": 0}, None, "n: "),
    ({"prompt": ["1=", "2=", "3="], "n": 100}, None, "at a time"),
    ({"prompt": "1=", "max_tokens": 33}, None, "at most 32 tokens"),
    ({"prompt": "1=", "seed": 2**70}, None, "seed"),
    ({"prompt": "1=", "stop": [""]}, None, "stop"),
    ({"prompt": "1=", "logit_bias": {"5": 1}}, None, "logit_bias is not supported"),
    ({"prompt": "1=", "best_of": 2}, None, "best_of is not supported"),
    ({"prompt": ""}, None, "empty"),
    ({"prompt": []}, None, "empty"),
    ({"prompt": [1]}, None, "mask id"),
    ({"prompt": [4000]}, None, "4000"),
    ({"prompt": {}}, None, "prompt"),
]


@pytest.mark.parametrize(("body", "raw", "message"), BAD)
def test_a_malformed_request_is_answered_with_400_and_what_is_wrong(server, body, raw, message):
    content = json.dumps(body).encode() if raw is None else raw
    answer = server.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert message in error["message"]


@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        ([], {}, "messages"),
        ([{"role": "tool", "content": "1"}], {}, "role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], {}, "content"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools is not supported"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ([{"role": "user", "content": "1" * 300}], {}, "256 in all"),
    ],
)
def test_a_chat_that_cannot_be_answered_is_refused(server, messages, more, message):
    answer = server.post("/v1/chat/completions", messages=messages, **more)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_what_asks_for_nothing_is_no_error(server):
    neutral = {
        "tools": [],
        "frequency_penalty": 0,
        "user": "me",
        "response_format": {"type": "text"},
        "logit_bias": None,
    }
    assert server.post("/v1/chat/completions", messages=CHAT, max_tokens=4, **neutral).status_code == 200


def test_a_prompt_that_is_too_long_has_openais_code(server):
    answer = server.post(prompt="1" * 300)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_other_paths_and_methods_are_errors_in_openais_form(server):
    for answer, status in ((server.http.get("/v1/nothing"), 404), (server.http.get("/v1/completions"), 405)):
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_form_is_no_request(server):
    """A page of another site can send one without asking the browser's user."""
    answer = server.http.post("/v1/completions", content=b'{"prompt": "1="}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400 and "application/json" in answer.json()["error"]["message"]


@pytest.mark.slow
def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_its_length(model_folder):
    def pieces():
        yield b'{"prompt": "'
        for _ in range(64):
            yield b"1" * 1024

    with serving(model_folder, max_body_mib=0.03) as server:
        refused = server.post(prompt="1" * 2_000_000)
        assert refused.status_code == 413 and "max_body_mib=0.03" in refused.json()["error"]["message"]
        headers = {"Content-Type": "application/json"}
        assert server.http.post("/v1/completions", content=pieces(), headers=headers).status_code == 413
        assert server.post(prompt="1=").status_code == 200


@pytest.mark.slow
def test_an_api_key_is_asked_for_under_v1_alone(model_folder):
    with serving(model_folder, api_key="s\N{LATIN SMALL LETTER SHARP S}cret") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff"}):
            answer = server.http.post("/v1/completions", json={"prompt": "1="}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert server.http.get("/v1/models", headers=headers).status_code == 401
        assert server.http.get("/health").status_code == server.http.get("/metrics").status_code == 200
        right = {"Authorization": "Bearer s\N{LATIN SMALL LETTER SHARP S}cret".encode()}
        assert server.http.post("/v1/completions", json={"prompt": "1="}, headers=right).status_code == 200


@pytest.mark.slow
def test_health_is_503_until_the_model_is_loaded(model_folder):
    go = threading.Event()

    def late(settings, spec):
        go.wait(30)
        return load_sampler(settings, spec)

    with serving(model_folder, load=late) as server:
        assert server.http.get("/health").status_code == 503
        refused = server.post(prompt="1=")
        assert refused.status_code == 503 and "loading" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        go.set()
        deadline = time.monotonic() + 20
        while server.http.get("/health").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.post(prompt="1=").status_code == 200


class Slow:
    """A sampler whose sessions take a while for a poll."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, settings, spec):
        sampler = load_sampler(settings, spec)
        session_of = sampler.session

        def session(tokens):
            made = session_of(tokens)
            poll = made.poll
            made.poll = lambda: (time.sleep(self.seconds), poll())[1]
            return made

        sampler.session = session
        return sampler


@pytest.fixture
def slow(model_folder):
    with serving(
        model_folder,
        load=Slow(0.05),
        max_slots=1,
        max_queue=2,
        timeout_seconds=0.6,
        strategy="sequential",
        threshold=1.0,
    ) as running:
        while not running.engine.ready:
            time.sleep(0.01)
        yield running


@pytest.mark.slow
def test_a_full_queue_is_503_and_a_request_that_takes_too_long_504(slow):
    asked = {"prompt": "31=", "max_tokens": 32, "seed": 1}
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(slow.post(**asked).status_code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while slow.engine.running + slow.engine.waiting < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    full = slow.post(**asked)
    assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
    for thread in threads:
        thread.join()
    assert answers == [504] * 3 and slow.idle_in()
    lines = slow.http.post("/v1/completions", json=asked | {"stream": True}).text.strip().split("\n\n")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "timeout_error"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(slow, stream):
    body = json.dumps({"prompt": "31=", "max_tokens": 32, "seed": 1, "stream": stream}).encode()
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    head = "\r\n".join((*lines, "", ""))
    with socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + 5
        while slow.engine.running == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slow.engine.running == 1
    assert slow.idle_in(0.4)
    assert slow.metric("dllm_cancelled_requests_total") == 1


@pytest.mark.slow
def test_64_clients_with_cancels_and_disconnects_get_their_own_answers(model_folder, model):
    """Every answer equals the one that the request gets alone; at the end all slots are free."""
    draw = random.Random(0)
    asked = [
        {
            "prompt": "".join(draw.choices("0123456789", k=draw.randint(1, 9))) + "=",
            "max_tokens": draw.randint(1, 32),
            "seed": i,
            "temperature": draw.choice([0, 0.7, 1.0]),
            "top_p": draw.choice([1.0, 0.8]),
            "stream": i % 2 == 1,
        }
        for i in range(64)
    ]

    async def ask(client, i):
        request = client.completions.create(model="m", **asked[i])
        if i % 8 == 3:  # leaves before or while the answer comes
            try:
                await asyncio.wait_for(request, 0.005)
            except (TimeoutError, openai.APIError):
                return None
            return None
        answer = await request
        if not asked[i]["stream"]:
            return answer.choices[0].text
        text = ""
        async for chunk in answer:
            text += chunk.choices[0].text
            if i % 8 == 5 and text:
                await answer.close()
                return None
        return text

    async def ask_all(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(64)))

    with serving(model_folder, max_slots=8) as server:
        texts = asyncio.run(ask_all(server.url))
        assert server.idle_in()
        ready, tokens = server.metric("dllm_ready"), server.metric("dllm_completion_tokens_total")
        counted = server.metric("dllm_requests_total")
    assert ready == 1 and tokens > 0 and 48 <= counted <= 64
    for request, text in zip(asked, texts, strict=True):
        if text is not None:
            settings = {name: request[name] for name in ("seed", "temperature", "top_p")}
            (want,) = whole(model, request["prompt"], settings | {"max_new_tokens": request["max_tokens"]})
            assert text == text_of(model, want)
    assert sum(text is None for text in texts) == 16
