"""What stands in for a judge: a small OpenAI-compatible server, and a tiny random causal model."""

import json
import shutil
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

TOKENIZER = Path(__file__).parents[1] / "configs" / "tiny_model"


class JudgeServer(ThreadingHTTPServer):
    """A small OpenAI-compatible server; `reply` maps a request to a text, or to (status, text), and may sleep;
    `moved` is the path that others redirect to,
    `models_status` the answer to a list of models."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.reply = lambda request: "\\boxed{1}"
        self.moved, self.models_status = "", 200
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(self.server.models_status, {"data": [{"id": "judge"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.moved not in ("", self.path):
            self.send_response(308)
            self.send_header("Location", self.server.moved)
            self.end_headers()
            return
        self.server.requests.append({**request, "path": self.path, "key": self.headers.get("Authorization")})
        reply = self.server.reply(request)
        status, text = reply if isinstance(reply, tuple) else (200, reply)
        self.answer(status, {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": text})

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args):
        pass


@contextmanager
def serving():
    with JudgeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def judge_checkpoint(folder):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, eos_token_id=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder
