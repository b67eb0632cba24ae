"""lm-eval (EleutherAI's lm-evaluation-harness) with a diffusion model: `dllm-lm-eval --model dllm --model_args
pretrained=PATH,block_size=4 --tasks ...`, else lm-eval's own command line.

generate_until goes through the sampler. loglikelihood is exact for block families (`sample.likelihood.chain`) and the
estimate of a lower bound under full attention (`sample.likelihood.bound`). Each request is computed on its own, so that
no result depends on what else is asked.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from data.control import encode
from sample.draw import Drawing
from sample.likelihood import bound, chain
from serve.loading import Reader, check, load_sampler, sized
from serve.settings import ModelSettings, check_values
from serve.text import AnswerText

logger = logging.getLogger(__name__)
_DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
"""What users of lm-eval write -> the key's choices."""
_OWN = ("pretrained", "max_slots", "mc_num", "batch_size", "max_batch_size", "seed")


class DiffusionHarness(TemplateLM):
    """pretrained: the checkpoint. settings: `ModelSettings`, as `serve.py` has them (block_size, steps_per_block,
    strategy, threshold, cache, dtype, ...), but temperature 0. max_slots: answers decoded at a time. mc_num: samples of
    the bound. batch_size: rows of a forward of loglikelihood. seed: of sampled answers. ValueError: an unknown name."""

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 8,
        device: str | None = None,
        max_slots: int = 32,
        mc_num: int = 128,
        seed: int = 0,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        super().__init__()
        known = [item.name for item in fields(ModelSettings) if item.name != "model"]
        if unknown := [name for name in settings if name not in known]:
            raise ValueError(f"model_args {unknown[0]}: known are {', '.join((*_OWN, *known))}.")
        if (dtype := str(settings.get("dtype", "auto"))) in _DTYPES:
            settings["dtype"] = _DTYPES[dtype]
        place = {} if device is None else {"device": str(device).split(":")[0]}
        chosen = ModelSettings(**{"model": str(pretrained), "temperature": 0.0} | settings | place)  # type: ignore[arg-type]
        check_values(chosen)
        spec = check(chosen)
        self.settings = sized(chosen, spec)
        self.sampler = load_sampler(self.settings, spec, max_slots=int(max_slots), seed=int(seed))
        self.model, self.reader = self.sampler.model, Reader(self.sampler.model, self.settings)
        self.rows = int(batch_size) if str(batch_size).isdigit() else 8
        self.samples, self.seed = int(mc_num), int(seed)
        self.tokenizer = self.reader.tokenizer
        self._warned = False

    @property
    def eot_token_id(self) -> int:
        return self.model.end_of_response_id

    @property
    def max_length(self) -> int:
        return int(self.model.hf_config.max_position_embeddings)

    @property
    def tokenizer_name(self) -> str:
        return f"{self.model.family}-{self.settings.template}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.tokenizer_name if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = [(turn["role"], turn["content"]) for turn in chat_history]
        if add_generation_prompt:
            return self.reader.writer.conversation(turns)
        return self.reader.writer.conversation(turns[:-1]) + turns[-1][1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return encode(self.tokenizer, string)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        results = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm, desc="loglikelihood"):
            room = self.max_length - len(continuation)
            if room < 1:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens; the model has {self.max_length} positions"
                )
            result = self._likelihood(context[-room:], continuation)
            self.cache_hook.add_partial("loglikelihood", texts, result)
            results.append(result)
        return results

    def _likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """(log-likelihood or its bound, whether greedy decoding writes the continuation)."""
        if self.model.attention == "block":
            block_size = self.sampler.config.block_size
            assert block_size is not None
            logp, greedy = chain(self.model, context, continuation, block_size, self.rows)
            return logp, bool(greedy)
        logp, _ = bound(self.model, context, continuation, self.samples, self.rows)
        session = self.sampler.session(self.settings.max_sequence_tokens or self.max_length)
        if not self._fits(len(context), len(continuation)):
            return logp, False
        session.add(context, max_new_tokens=len(continuation), drawing=Drawing(0.0, 0, 1.0))
        while True:
            for update in session.poll():
                if update.rollout is not None:
                    return logp, update.rollout.canvas_ids == continuation

    def _fits(self, prompt: int, response: int) -> bool:
        most, new = self.settings.max_sequence_tokens, self.settings.max_new_tokens
        assert most is not None and new is not None
        return response <= new and prompt + response <= most

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        results = []
        for request in tqdm(list(requests), disable=disable_tqdm, desc="loglikelihood_rolling"):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            parts = [self._rolled(*make_disjoint_window(window)) for window in windows]
            results.append(sum(parts))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def _rolled(self, context: list[int], continuation: list[int]) -> float:
        if self.model.attention == "block":
            block_size = self.sampler.config.block_size
            assert block_size is not None
            return chain(self.model, context, continuation, block_size, self.rows).logp
        return bound(self.model, context, continuation, self.samples, self.rows).logp

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        assert self.settings.max_sequence_tokens is not None
        session = self.sampler.session(self.settings.max_sequence_tokens)
        texts, asked, done = [], {}, [""] * len(requests)
        for place, request in enumerate(requests):
            context, kwargs = request.args
            prompt, most, drawing = self._asked(context, dict(kwargs))
            (index,) = session.add(prompt, max_new_tokens=most, seed=self.seed, drawing=drawing)
            asked[index] = place
            texts.append(AnswerText(self.tokenizer, _stops(kwargs)))
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            while asked:
                for update in session.poll():
                    if update.index not in asked:
                        continue
                    text = texts[asked[update.index]]
                    if text.feed(update).finish_reason is not None:
                        session.cancel(update.index)
                        place = asked.pop(update.index)
                        done[place] = text.text
                        self.cache_hook.add_partial("generate_until", requests[place].args, text.text)
                        bar.update()
        return done

    def _asked(self, context: str, kwargs: dict[str, Any]) -> tuple[list[int], int, Drawing]:
        """Prompt, length and drawing of a request. A prompt that leaves no room is cut on the left, as lm-eval does."""
        most, new = self.settings.max_sequence_tokens, self.settings.max_new_tokens
        assert most is not None and new is not None
        wanted = int(kwargs.get("max_gen_toks") or new)
        length = min(wanted, new)
        if wanted > new and not self._warned:
            self._warned = True
            logger.warning("the task asks for answers of %d tokens, model_args max_new_tokens is %d", wanted, new)
        sampled = kwargs.get("do_sample", float(kwargs.get("temperature") or 0.0) > 0.0)
        temperature = float(kwargs.get("temperature", 1.0)) if sampled else 0.0
        drawing = Drawing(temperature, max(0, int(kwargs.get("top_k", 0))), float(kwargs.get("top_p", 1.0)))
        return self.tok_encode(context)[-(most - length) :], length, drawing


def _stops(kwargs: dict[str, Any]) -> list[str]:
    until = kwargs.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def main() -> None:
    """lm-eval's command line, which knows the model `dllm`."""
    from lm_eval.__main__ import cli_evaluate

    if "dllm" not in model_registry:
        model_registry.register("dllm", target="serve.harness:DiffusionHarness")
    cli_evaluate()
