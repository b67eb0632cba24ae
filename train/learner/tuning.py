"""What fine-tuning learns from an update's training samples: the likelihood of responses, or the preference in pairs of
them.

Shapes: S training samples, N trained tokens, P pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.schema import TrainingConfig
from runtime import stopping
from sample.rollout import Key
from train.algorithm.objectives import (
    Metrics,
    PairLosses,
    dpo,
    negative_log_likelihood,
    per_token,
    token_weights,
)
from train.algorithm.packing import MicroBatch
from train.algorithm.replay import TrainingSample
from train.learner.updater import StepTotals, Updater, outputs

Rows = Sequence[NDArray[np.float32]]
Portions = Iterable[tuple[Sequence[str], Sequence[TrainingSample]]]
"""(label of its set, training sample), some of the samples at a time."""
Figures = dict[str, float]


class Learning(Protocol):
    """An objective of fine-tuning. shown: metrics of a step that its line on the terminal has.
    final: those of the last update that the run's last line has."""

    shown: tuple[str, ...]
    final: tuple[str, ...]

    def update(self, samples: Sequence[TrainingSample]) -> StepTotals:
        """One update on samples that are whole responses. Stopped, with nothing changed, where a request to stop comes
        before its last micro-batch (`Updater.update`)."""
        ...

    def metrics(self, totals: StepTotals) -> Figures:
        """What an update is logged with: loss, nll and more."""
        ...

    def figures(self, portions: Portions) -> Figures | None:
        """loss, nll (nats a token, also of each set) and more of held-out samples; None where there are none."""
        ...


class Likelihood:
    """The mean of -log p over trained tokens, under training.normalization.

    longest: tokens of the longest response. label_of: first part of a sample's key -> label of its set, where there are
    several.
    """

    shown: tuple[str, ...] = ("loss", "nll", "grad_norm", "learning_rate", "trained_tokens")
    final: tuple[str, ...] = ("nll",)

    def __init__(
        self, updater: Updater, training: TrainingConfig, attention: str, longest: int, label_of: Mapping[int, str]
    ):
        self.updater, self.training, self.attention, self.label_of = updater, training, attention, label_of
        self.max_gen_length = training.max_gen_length or longest

    def update(self, samples: Sequence[TrainingSample]) -> StepTotals:
        weights = token_weights(
            samples,
            self.training.normalization,
            max_gen_length=self.max_gen_length,
            longest_response=max(int(sample.canvas_index.max()) + 1 for sample in samples)
            if self.attention == "block"
            else None,
        )

        def loss_of(logp_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            loss, sums = negative_log_likelihood(logp_N, per_token(weights.policy, micro, logp_N.device))
            return loss, sums | _sums_by_set(logp_N.detach(), micro, samples, self.label_of)

        return StepTotals([self.updater.update(samples, range(len(samples)), loss_of, may_stop=True)])

    def metrics(self, totals: StepTotals) -> Figures:
        by_set = _metrics_by_set(totals, self.label_of)
        return {"loss": totals.mean_loss, "nll": totals.per_token("nll"), **by_set}

    def figures(self, portions: Portions) -> Figures | None:
        """loss: mean of -log p over masked tokens under training.loss_weight; nll: without weights."""
        of: list[str] = []
        logp: list[NDArray[np.float32]] = []
        weighted, weights = 0.0, 0.0
        for labels, made in portions:
            rows = self.updater.outputs(made, range(len(made)))
            weighted += sum(float((row * sample.weight).sum()) for row, sample in zip(rows, made, strict=True))
            weights += sum(float(sample.weight.sum()) for sample in made)
            of, logp = [*of, *labels], logp + rows
        if not any(len(row) for row in logp):
            return None
        return {"loss": -weighted / max(1e-9, weights), **_nll_by_set(of, logp)}


class Canvases:
    """The mean over responses of two means of -log p: over the tokens of a canvas, and, times its weight, over the
    encoder's next tokens. Metrics have the first as nll, the second as encoder_nll.

    label_of: as of `Likelihood`.
    """

    shown: tuple[str, ...] = ("loss", "nll", "encoder_nll", "grad_norm", "learning_rate")
    final: tuple[str, ...] = ("nll",)

    def __init__(self, updater: Updater, label_of: Mapping[int, str]):
        self.updater, self.label_of = updater, label_of

    def update(self, samples: Sequence[TrainingSample]) -> StepTotals:
        responses = len({sample.key for sample in samples})
        weights = [sample.weight / responses for sample in samples]
        of_canvas = [_is_of_canvas(sample).astype(np.float32) for sample in samples]

        def loss_of(logp_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            weight_N, canvas_N = (per_token(values, micro, logp_N.device) for values in (weights, of_canvas))
            now_N = logp_N.detach()
            sums: Metrics = {"tokens": canvas_N.sum(), "nll": -(now_N * canvas_N).sum()}
            sums |= {"encoder_tokens": (1.0 - canvas_N).sum(), "encoder_nll": -(now_N * (1.0 - canvas_N)).sum()}
            sums |= _sums_by_set(now_N, micro, samples, self.label_of, canvas_N)
            return -(weight_N * logp_N).sum(), sums

        return StepTotals([self.updater.update(samples, range(len(samples)), loss_of)])

    def metrics(self, totals: StepTotals) -> Figures:
        encoder_nll = totals.total("encoder_nll") / max(1.0, totals.total("encoder_tokens"))
        by_set = _metrics_by_set(totals, self.label_of)
        return {"loss": totals.mean_loss, "nll": totals.per_token("nll"), "encoder_nll": encoder_nll, **by_set}

    def figures(self, portions: Portions) -> Figures | None:
        of: list[str] = []
        canvas: list[NDArray[np.float32]] = []
        encoder: list[NDArray[np.float32]] = []
        weighted, keys = 0.0, set()
        for labels, made in portions:
            rows = self.updater.outputs(made, range(len(made)))
            weighted += sum(float((row * sample.weight).sum()) for row, sample in zip(rows, made, strict=True))
            keys |= {sample.key for sample in made}
            for row, sample in zip(rows, made, strict=True):
                canvas.append(row[_is_of_canvas(sample)])
                encoder.append(row[~_is_of_canvas(sample)])
            of = [*of, *labels]
        if not keys:
            return None
        encoder_nll = _nll_by_set([""] * len(encoder), encoder)["nll"]
        return {"loss": -weighted / len(keys), "encoder_nll": encoder_nll, **_nll_by_set(of, canvas)}


def _is_of_canvas(sample: TrainingSample) -> NDArray[np.bool_]:
    """Bool [N]."""
    return sample.copy[sample.index] > 0


@dataclass(frozen=True)
class Compared:
    """Pairs of an update under policy and reference. samples: those that stand in whole pairs; pair_S: whose each is;
    is_chosen_S; logp: of the policy. chosen_P, rejected_P: gains over the reference, nats a response."""

    samples: Sequence[TrainingSample]
    pair_S: NDArray[np.int64]
    is_chosen_S: NDArray[np.bool_]
    logp: Rows
    chosen_P: NDArray[np.float64]
    rejected_P: NDArray[np.float64]
    losses: PairLosses

    @property
    def sums(self) -> Figures:
        losses = self.losses
        return {
            "pairs": float(len(losses.loss_P)),
            "pair_loss": float(losses.loss_P.sum()),
            "margin": float(losses.margin_P.sum()),
            "pair_accuracy": float((losses.margin_P > 0).sum() + (losses.margin_P == 0).sum() / 2),
            "gain/chosen": float(self.chosen_P.sum()),
            "gain/rejected": float(self.rejected_P.sum()),
        }


_OF_PAIRS = ("margin", "pair_accuracy", "gain/chosen", "gain/rejected")


class Preference:
    """DPO on pairs (`train.algorithm.objectives.dpo`), the mean over an update's pairs; a response's log-likelihood is
    sum_j share_j logp_j of its training samples, whose masks policy and reference share.

    Both score an update's samples before its backward pass, so that each token's part of the gradient is known, and no
    response need be whole in a micro-batch: it costs a forward pass more than pairs side by side would. Under dropout
    of adapters the margins are those without it.

    reference: the frozen model. label_of: as of `Likelihood`. Samples of response 2i (first part of the key) are those
    chosen of pair i, of 2i + 1 the rejected.
    """

    shown: tuple[str, ...] = ("loss", "margin", "pair_accuracy", "grad_norm", "learning_rate")
    final: tuple[str, ...] = ("nll", "margin", "pair_accuracy")

    def __init__(self, updater: Updater, reference: nn.Module, beta: float, label_of: Mapping[int, str]):
        self.updater, self.reference, self.beta, self.label_of = updater, reference, beta, label_of

    def compare(self, samples: Sequence[TrainingSample]) -> Compared:
        """The pairs of these samples, under the weights as they are. A pair of which one response has nothing to train
        is left out."""
        samples = _of_whole_pairs(samples)
        every, updater = range(len(samples)), self.updater
        logp = updater.outputs(samples, every)
        given = updater.settings.max_tokens, updater.accelerator.device, updater.engine.lockstep
        reference = outputs(self.reference, samples, every, *given)
        order = {pair: number for number, pair in enumerate(dict.fromkeys(_pair_of(each.key) for each in samples))}
        pair_S = np.array([order[_pair_of(each.key)] for each in samples], dtype=np.int64)
        is_chosen_S = np.array([_is_chosen(each.key) for each in samples], dtype=bool)
        gain_S = np.array(
            [
                (each.weight * (mine.astype(np.float64) - other)).sum()
                for each, mine, other in zip(samples, logp, reference, strict=True)
            ]
        )
        gain_2P = np.zeros((2, len(order)))
        np.add.at(gain_2P, (np.where(is_chosen_S, 0, 1), pair_S), gain_S)
        chosen_P, rejected_P = gain_2P
        losses = dpo(chosen_P, rejected_P, self.beta)
        return Compared(samples, pair_S, is_chosen_S, logp, chosen_P, rejected_P, losses)

    def update(self, samples: Sequence[TrainingSample]) -> StepTotals:
        pairs = self.compare(samples)
        stopping.check()
        samples, losses = pairs.samples, pairs.losses
        if not samples:
            return StepTotals()
        count = len(losses.loss_P)
        tokens_P = np.bincount(pairs.pair_S, [each.num_trained for each in samples], minlength=count)
        slope_S = losses.slope_P[pairs.pair_S] * np.where(pairs.is_chosen_S, 1.0, -1.0) / count
        slopes = [slope * each.weight for slope, each in zip(slope_S, samples, strict=True)]
        parts = (losses.loss_P / (tokens_P * count))[pairs.pair_S].tolist()  # the loss, spread over its tokens
        is_chosen = pairs.is_chosen_S.astype(np.float32).tolist()

        def loss_of(logp_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            slope_N, part_N, chosen_N = (
                per_token(values, micro, logp_N.device) for values in (slopes, parts, is_chosen)
            )
            now_N = logp_N.detach()
            sums: Metrics = {"tokens": torch.ones_like(now_N).sum(), "chosen_tokens": chosen_N.sum()}
            sums |= {"nll": -(chosen_N * now_N).sum()}
            sums |= _sums_by_set(now_N, micro, samples, self.label_of, chosen_N)
            return (slope_N * (logp_N - now_N)).sum() + part_N.sum(), sums

        result = self.updater.update(samples, range(len(samples)), loss_of, may_stop=True)
        return StepTotals([replace(result, sums={**result.sums, **pairs.sums})])

    def metrics(self, totals: StepTotals) -> Figures:
        pairs = max(1.0, totals.total("pairs"))
        return {
            "loss": totals.mean_loss,
            "pairs": totals.total("pairs"),
            **{name: totals.total(name) / pairs for name in _OF_PAIRS},
            "nll": totals.total("nll") / max(1.0, totals.total("chosen_tokens")),
            **_metrics_by_set(totals, self.label_of),
        }

    def figures(self, portions: Portions) -> Figures | None:
        """The loss, and what updates are logged with besides; nll: of the chosen responses."""
        sums: Figures = {}
        of: list[str] = []
        logp: list[NDArray[np.float32]] = []
        for labels, made in portions:
            pairs = self.compare(made)
            label_of = {each.key: label for each, label in zip(made, labels, strict=True)}
            sums = {name: sums.get(name, 0.0) + value for name, value in pairs.sums.items()}
            chosen = np.flatnonzero(pairs.is_chosen_S).tolist()
            logp += [pairs.logp[i] for i in chosen]
            of += [label_of[pairs.samples[i].key] for i in chosen]
        if not logp:
            return None
        means = {name: sums[name] / sums["pairs"] for name in ("pair_loss", *_OF_PAIRS)}
        return {"loss": means.pop("pair_loss"), **means, **_nll_by_set(of, logp)}


def _pair_of(key: Key) -> Key:
    return (int(key[0]) // 2, *key[1:])


def _is_chosen(key: Key) -> bool:
    return int(key[0]) % 2 == 0


def _of_whole_pairs(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Those of pairs of which both responses have samples."""
    sides: dict[Key, set[bool]] = {}
    for each in samples:
        sides.setdefault(_pair_of(each.key), set()).add(_is_chosen(each.key))
    return [each for each in samples if len(sides[_pair_of(each.key)]) == 2]


def _sums_by_set(
    logp_N: Tensor,
    micro: MicroBatch,
    samples: Sequence[TrainingSample],
    label_of: Mapping[int, str],
    counted_N: Tensor | None = None,
) -> Metrics:
    """Of several sets, the sums of each in a micro-batch. counted_N: 1 where a token counts in nll, default
    everywhere."""
    found: Metrics = {}
    of = [label_of.get(int(samples[i].key[0]), "") for i in micro.samples]
    for label in sorted({*of} - {""}):
        is_own = np.array([each == label for each in of])[micro.sample_of_N]
        own_N = torch.from_numpy(is_own).to(logp_N.device)
        in_nll_N = own_N if counted_N is None else own_N * counted_N
        found |= {f"tokens({label})": own_N.sum(), f"nll_tokens({label})": in_nll_N.sum()}
        found |= {f"nll({label})": -(logp_N * in_nll_N).sum()}
    return found


def _metrics_by_set(totals: StepTotals, label_of: Mapping[int, str]) -> Figures:
    found: Figures = {}
    for label in sorted({*label_of.values()}):
        if tokens := totals.total(f"tokens({label})"):
            nll = totals.total(f"nll({label})") / max(1.0, totals.total(f"nll_tokens({label})"))
            found |= {f"nll({label})": nll, f"trained_tokens({label})": tokens}
    return found


def _nll_by_set(of: Sequence[str], logp: Rows) -> Figures:
    """Mean of -log p over the tokens of all rows, and over those of each set."""
    found: Figures = {}
    for label in ["", *sorted({*of} - {""})]:
        rows = [row for row, its in zip(logp, of, strict=True) if label in ("", its)]
        mean = -sum(float(row.sum()) for row in rows) / max(1, sum(len(row) for row in rows))
        found[f"nll({label})" if label else "nll"] = mean
    return found
