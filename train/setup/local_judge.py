"""A judge loaded here: a causal language model of transformers."""

import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TopPLogitsWarper,
)

from configs import find, naming
from configs.schema import JudgeConfig
from data.chat import chat_of
from models.folder import resolve_folder, weight_files
from reward.judge.judge import Question

logger = logging.getLogger(__name__)


def prompt_tokens(judge: JudgeConfig) -> int:
    """Tokens that a judge's longest answer leaves for its question."""
    if judge.max_tokens >= judge.max_model_len:
        raise ValueError(
            f"{judge.key('max_tokens')}={judge.max_tokens} leaves no room for a question in "
            f"{judge.key('max_model_len')}={judge.max_model_len}: lower the one or raise the other."
        )
    return judge.max_model_len - judge.max_tokens


class LocalJudge:
    """A causal language model of transformers as a judge.

    An answer depends on the question's text and sample number alone, but for rounding: each question has its own random
    numbers, whatever it is batched with. A question that leaves no room for an answer gets None.
    """

    def __init__(self, path: str, config: JudgeConfig, device: torch.device):
        """path: a folder or a hub name; config: the other settings. The model is loaded with the first question."""
        self.config, self.device = config, device
        with naming(config.key("local")):
            self.folder = resolve_folder(find(path))
            weight_files(self.folder)
            self.tokenizer = self._tokenizer()
            if (chat := chat_of(self.tokenizer)) is not None:
                chat([("user", "Is 6 * 7 = 42?")])
        self._loaded = False

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(self.folder, padding_side="left", trust_remote_code=False)
        except Exception as error:  # whatever a damaged file makes its reader raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(
                f"the tokenizer in {self.folder} cannot be read ({reason}): copy its files again."
            ) from error

    def _load(self) -> None:
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, trust_remote_code=False)
        self.model = model.to(self.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.marks = sorted({*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}, key=len)[::-1]
        self._loaded = True

    def __call__(self, questions: Sequence[Question]) -> list[str | None]:
        if not self._loaded:
            self._load()
        if any(question.pictures for question in questions):
            logger.warning(
                "%s=%s reads text alone: it judges without the pictures", self.config.key("local"), self.folder
            )
        ids = [self._ids(question.text) for question in questions]
        answers: list[str | None] = [None] * len(questions)
        fitting = [i for i, tokens in enumerate(ids) if 0 < len(tokens) < self.config.max_model_len]
        fitting.sort(key=lambda i: len(ids[i]))
        for first in range(0, len(fitting), self.config.parallel):
            batch = fitting[first : first + self.config.parallel]
            texts = self._generate([ids[i] for i in batch], [seed_of(questions[i]) for i in batch])
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
        return answers

    def _ids(self, text: str) -> list[int]:
        """The question as one turn of a chat; marks of the judge's own tokenizer inside the text are taken out."""
        for mark in self.marks:
            text = text.replace(mark, " ")
        chat = chat_of(self.tokenizer)
        if chat is None:
            return self.tokenizer(text)["input_ids"]
        return self.tokenizer(chat([("user", text)]), add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def _generate(self, ids: list[list[int]], seeds: Sequence[int]) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        width = batch["input_ids"].shape[1]
        choose = [SeededSampling(seeds, self.config, self.device)] if self.config.temperature > 0 else []
        output = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=min(self.config.max_tokens, self.config.max_model_len - width),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList(choose),
        )
        return self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling under temperature and top_p with one random generator a row: the argmax of
    log-probabilities plus Gumbel noise is a sample (Gumbel-max)."""

    def __init__(self, seeds: Sequence[int], config: JudgeConfig, device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperature = config.temperature
        self.nucleus = TopPLogitsWarper(config.top_p) if config.top_p < 1.0 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float() / self.temperature
        if self.nucleus is not None:
            scores = self.nucleus(input_ids, scores)
        noise = [torch.empty_like(scores[0]).exponential_(generator=generator) for generator in self.generators]
        return scores - torch.stack(noise).log()


def seed_of(question: Question) -> int:
    """A number of 63 bits from the question's text and sample number."""
    digest = hashlib.blake2b(f"{question.sample} {question.text}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
