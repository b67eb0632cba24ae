"""Objective, advantage and masking method from a user's file: what cannot work is one line that names the key, before a
model is loaded."""

import numpy as np
import pytest
from trainees import make_config

from train.algorithm.masking import Canvas
from train.checks import objective_line
from train.setup.doors import advantage_of, check_doors, method_of, objective_of

OBJECTIVES = """
import torch
from train.algorithm.objectives import objective, sum_by


@objective(defaults={"alpha": 0.5, "kind": "plain", "steps": [1, 2]}, training=("eps",))
def good(batch, params):
    loss = -(batch.weight * batch.advantage * batch.logp).sum() * params["alpha"] * (1 + params["eps"])
    return loss, {"alpha": params["alpha"]}


def bare(batch, params):
    return -(batch.weight * batch.logp).sum(), {}


def one_argument(batch):
    return batch.logp.sum(), {}


def raises(batch, params):
    raise KeyError("no such thing")


def per_token(batch, params):
    return -batch.weight * batch.logp, {}


def loss_alone(batch, params):
    return -(batch.weight * batch.logp).sum()


def not_a_number(batch, params):
    return (batch.weight * batch.logp * float("nan")).sum(), {}


def without_gradient(batch, params):
    return (batch.weight * batch.advantage).sum(), {}


def list_of_metrics(batch, params):
    return -(batch.weight * batch.logp).sum(), ["kl"]


def metric_per_token(batch, params):
    return -(batch.weight * batch.logp).sum(), {"kl": batch.logp}


def mean(batch, params):
    return -(batch.advantage * batch.logp).mean(), {}


def writes_into_params(batch, params):
    params["alpha"] = 1.0


def sequence_ratio(batch, params):
    ratio = (sum_by(batch.response, batch.logp - batch.logp_old)).exp()
    return -(batch.weight * ratio * batch.advantage).sum(), {}


whole_sequence_ratio = objective(whole_responses=True)(lambda batch, params: sequence_ratio(batch, params))
bad_sums = objective(sums=lambda batch, params: {"mean": batch.logp.mean()})(bare)
number = 3


def other_needs(batch, params):
    return -(batch.weight * batch.logp).sum(), {}


other_needs.needs = {"entropy"}


def complex_loss(batch, params):
    return (batch.weight * batch.logp).sum() * torch.tensor(1j), {}


of_no_key = objective(training=("epss",))(lambda batch, params: bare(batch, params))


def unasked(batch, params):
    return (batch.weight * batch.logp * batch.entropy).sum(), {}


def trainers_metric(batch, params):
    return -(batch.weight * batch.logp).sum(), {"mismatch_kl": 1.0}


def leaves(batch, params):
    raise SystemExit(0)
"""

ADVANTAGES = """
import numpy as np


def ranks(reward_G, power=1.0):
    return (np.argsort(np.argsort(reward_G)) / len(reward_G)) ** power


def needs_power(reward_G, *, power):
    return reward_G**power


def takes_nothing():
    return None


def too_few(reward_G):
    return reward_G[:-1]


def one_number(reward_G):
    return reward_G.mean()


def infinite(reward_G):
    return reward_G + float('inf')


def text(reward_G):
    return ["a"] * len(reward_G)


def raises(reward_G):
    return reward_G["first"]
"""

METHODS = """
import numpy as np
from train.algorithm.masking import Method, NoisyCopy, trace


def everything(canvas, training, rng, share=1.0):
    return [
        canvas.masked(int(unit), 0, canvas.unit_C == unit, canvas.trained_C & (canvas.unit_C == unit), share)
        for unit in np.unique(canvas.unit_C[canvas.trained_C])
    ]


mine = Method(trace, as_sampled=True)
fine_tuning = Method(everything, rl=False)
causal = Method(lambda canvas, training, rng: [canvas.masked(0, 0, ~canvas.trained_C, canvas.trained_C, 1.0, True)])


def nothing(canvas, training, rng):
    return None


def of_numbers(canvas, training, rng):
    return [NoisyCopy(0, 0, canvas.step_C * 1.5, canvas.ids_C, canvas.trained_C)]


def short(canvas, training, rng):
    return [NoisyCopy(0, 0, canvas.ids_C, canvas.ids_C[:-1], canvas.trained_C)]


def elsewhere(canvas, training, rng):
    return [canvas.masked(99, 0, canvas.trained_C, canvas.trained_C)]


def open_eyes(canvas, training, rng):
    return [canvas.masked(0, 0, canvas.trained_C & False, canvas.trained_C & (canvas.unit_C == 0))]


def untrained(canvas, training, rng):
    return [canvas.masked(2, 0, canvas.unit_C == 2, canvas.unit_C == 2)]


def empty(canvas, training, rng):
    return [canvas.masked(0, 0, canvas.unit_C == 0, canvas.trained_C & False)]


def outside(canvas, training, rng):
    return [canvas.masked(0, 0, canvas.trained_C, canvas.trained_C)]


def raises(canvas, training, rng):
    return [][0]


def two_arguments(canvas, training):
    return []


def no_copy(canvas, training, rng):
    return []
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    for name, text in (("objectives", OBJECTIVES), ("advantages", ADVANTAGES), ("methods", METHODS)):
        (folder / f"{name}.py").write_text(text)
    (folder / "broken.py").write_text("import nowhere_at_all\n\n\ndef f(): ...\n")
    (folder / "typo.py").write_text("def f(:\n")
    bare = "from train.algorithm.objectives import objective\n\n\n@objective\ndef f(batch, params): ...\n"
    (folder / "undecorated.py").write_text(bare)
    return folder


def check(mine, command="rl", attention="block", **training):
    """check_doors of a training section whose values may begin with a file of `mine`."""
    at_home = {
        key: str(mine / value) if isinstance(value, str) and ".py" in value else value
        for key, value in training.items()
    }
    return check_doors(make_config(training=at_home).training, command, attention, attention == "full")


OBJECTIVE = "training.objective"
BAD = [
    (
        {"objective": "clpi"},
        "training.objective is 'clpi'; choose from clip, reinforce, .*, or name your own.*Did you mean 'clip'",
    ),
    ({"objective": "CLIP"}, "Did you mean 'clip'"),
    ({"objective": "nowhere.py:f"}, "training.objective: no file '.*nowhere.py'"),
    ({"objective": "objectives.py"}, "training.objective must look like path/to/file.py:name"),
    ({"objective": "objectives.py:goood"}, "training.objective: .*objectives.py has no 'goood'; nearest: good"),
    ({"objective": "broken.py:f"}, "training.objective: .*broken.py:f cannot be loaded: ModuleNotFoundError"),
    ({"objective": "typo.py:f"}, "training.objective: .*typo.py line 1: "),
    ({"objective": "objectives.py:number"}, "training.objective: 3 is not a function"),
    ({"objective": "objectives.py:other_needs"}, "its attribute `needs` is {'entropy'}; write it with @objective"),
    ({"objective": "objectives.py:one_argument"}, r"one_argument\(batch\) is called with 2 arguments.*takes 1"),
    (
        {"objective": "objectives.py:raises"},
        r"objectives.py:raises: KeyError: 'no such thing' \(.*objectives.py line 21\)",
    ),
    ({"objective": "objectives.py:leaves"}, r"objectives.py:leaves: SystemExit: 0 \("),
    ({"objective": "objectives.py:per_token"}, r"returned a tensor of shape \(20,\) as its loss; .* one number"),
    ({"objective": "objectives.py:loss_alone"}, r"returned a tensor of shape \(\); it must return \(loss, metrics\)"),
    ({"objective": "objectives.py:not_a_number"}, "returned the loss nan for ordinary tokens"),
    ({"objective": "objectives.py:complex_loss"}, r"returned a tensor of complex64 numbers of shape \(\) as its loss"),
    ({"objective": "objectives.py:of_no_key"}, r"@objective\(training=...\) names 'epss', .* Did you mean 'eps'"),
    ({"objective": "objectives.py:unasked"}, r"NoneType.*batch.entropy is None without @objective\(entropy=True\)"),
    ({"objective": "objectives.py:trainers_metric"}, "returned a metric 'mismatch_kl', which is the trainer's own"),
    ({"objective": "undecorated.py:f"}, "cannot be loaded: TypeError: @objective stands without parentheses"),
    ({"objective": "gspo", "objective_params": {"eps_low": "abc"}}, "params.eps_low is 'abc'; it must be a finite num"),
    ({"objective_params": {"eps": -5}}, "training.objective_params.eps is -5; it must be at least 0"),
    ({"objective_params": {"dual_clip": 0.5}}, "training.objective_params.dual_clip is 0.5; it must be at least 1"),
    ({"objective": "stabledrl", "objective_params": {"limit": 0}}, "params.limit is 0; it must be at least 1"),
    ({"objective": "gdsd", "objective_params": {"psi": -1}}, "params.psi is -1; it must be at least"),
    ({"objective": "spg", "objective_params": {"mix": 5}}, "params.mix is 5; it must be between 0 and 1"),
    ({"objective": "objectives.py:without_gradient"}, "no finite gradient with respect to batch.logp"),
    ({"objective": "objectives.py:list_of_metrics"}, "returned a list as its metrics"),
    ({"objective": "objectives.py:metric_per_token"}, r"returned a tensor of shape \(20,\) as metric 'kl'"),
    ({"objective": "objectives.py:mean"}, "is not the sum of the losses of its parts.*max_tokens_per_microbatch"),
    (
        {"objective": "objectives.py:sequence_ratio"},
        r"is not the sum .*@objective\(whole_copies=True\), @objective\(whole_responses=True\)",
    ),
    ({"objective": "objectives.py:writes_into_params"}, "TypeError: 'mappingproxy' object does not support"),
    ({"objective": "objectives.py:bad_sums"}, r"sums: returned a tensor of shape \(\) as 'mean'.* 20 numbers"),
    ({"objective_params": {"alpha": 1}}, "training.objective_params.alpha is unknown: its parameters are eps, eps_low"),
    (
        {"objective": "objectives.py:bare", "objective_params": {"a": 1}},
        "objective_params.a is unknown: it has no param",
    ),
    (
        {"objective": "objectives.py:good", "objective_params": {"alfa": 1}},
        "objective_params.alfa is unknown: its parameters are alpha, kind, steps, eps. Did you mean 'alpha'",
    ),
    ({"objective": "objectives.py:good", "objective_params": {"alpha": "much"}}, "alpha is 'much'; .* a finite number"),
    ({"objective": "objectives.py:good", "objective_params": {"kind": 3}}, "kind is 3; it must be of type str"),
    ({"objective": "gdsd", "objective_params": {"phi": 1}}, "phi is unknown: its parameters are psi, .* mean 'psi'"),
    ({"kl_estimator": "k4"}, "training.kl_estimator is 'k4'; choose from k1, k2, k3"),
    ({"rollout_correction": "maskd"}, "training.rollout_correction is 'maskd'.*Did you mean 'masked'"),
    ({"advantage": "z-score"}, "training.advantage is 'z-score'.*Did you mean 'zscore'"),
    ({"advantage": "nowhere.py:f"}, "training.advantage: no file"),
    ({"advantage": "advantages.py:takes_nothing"}, r"takes_nothing\(\) is called with 1 arguments"),
    ({"advantage": "advantages.py:needs_power"}, "needs power: set training.advantage_params.power"),
    ({"advantage": "advantages.py:ranks", "advantage_params": {"powr": 1}}, "powr is unknown.*Did you mean 'power'"),
    (
        {"advantage": "zscore", "advantage_params": {"power": 1}},
        "advantage_params.power is unknown: it has no parameters",
    ),
    ({"advantage": "advantages.py:too_few"}, r"training.advantage=.*too_few returned .* of shape \(4,\) for .* \(5,\)"),
    ({"advantage": "advantages.py:one_number"}, r"one_number returned .* of shape \(\)"),
    ({"advantage": "advantages.py:infinite"}, r"infinite returned \[inf.*not finite"),
    ({"advantage": "advantages.py:text"}, r"text returned <U1"),
    ({"advantage": "advantages.py:raises"}, r"advantages.py:raises: IndexError: .* \(.*advantages.py line 34\)"),
    ({"method": "tracerl"}, "training.method is 'tracerl'.*Did you mean 'TraceRL'"),
    ({"method": "couple"}, "Did you mean 'coupled'"),
    ({"method": "semi-ar"}, "training.method=semi-ar is for train/sft.py; RL knows TraceRL, coupled, random_masking"),
    ({"method": "methods.py:fine_tuning"}, r"methods.py:fine_tuning is not for RL"),
    ({"method": "methods.py:two_arguments"}, "is called with 3 arguments in order, and takes 2"),
    ({"method": "methods.py:everything", "method_params": {"shar": 1}}, "Did you mean 'share'"),
    ({"method": "TraceRL", "method_params": {"share": 1}}, "training.method_params.share is unknown"),
    ({"method": "methods.py:nothing"}, "training.method=.*nothing: it must return a list of .*NoisyCopy"),
    ({"method": "methods.py:no_copy"}, "no_copy: it returned no copy of a response that has tokens to train"),
    ({"method": "methods.py:of_numbers"}, r"copy 0: ids_C must be an array of token ids of shape \(12,\)"),
    ({"method": "methods.py:short"}, r"copy 0: target_C must be an array of token ids of shape \(12,\)"),
    ({"method": "methods.py:elsewhere"}, "copy 0 is of unit 99, which the canvas has not"),
    ({"method": "methods.py:open_eyes"}, "copy 0 trains a position that holds its target: mask it"),
    ({"method": "methods.py:untrained"}, "copy 0 trains a position that is not in canvas.trained_C"),
    ({"method": "methods.py:empty"}, "copy 0 trains no position"),
    ({"method": "methods.py:outside"}, "copy 0 changes or trains a position outside its unit 0"),
    ({"method": "methods.py:causal"}, "copy 0 is causal: declare it with Method"),
    ({"method": "methods.py:raises"}, r"methods.py:raises: IndexError: .* line 51\)"),
]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({}, "TraceRL, shrink 1, eps 0.2, beta 0.01, constant, zscore"),
        (
            {"training": {"objective": "gspo", "eps_high": 0.3, "rollout_correction": "masked"}},
            "TraceRL, shrink 1, gspo, eps 0.2, eps_high 0.3, beta 0.01, rollout_correction masked, constant, zscore",
        ),
        (
            {"training": {"kl_to": "reference", "nll_weight": 1.0}, "reward": {"speed_weight": 0.5}},
            "TraceRL, shrink 1, eps 0.2, beta 0.01, nll_weight 1, KL to the first model, constant, zscore, "
            "speed bonus x 0.5",
        ),
        (
            {"training": {"objective": "distill"}, "model": {"reference_model": "/t"}},
            "TraceRL, shrink 1, distill, eps 0.2, beta 0.01, teacher /t, constant",
        ),
    ],
)
def test_the_banner_says_what_is_minimised(sections, line):
    assert objective_line(make_config(**sections)) == line


@pytest.mark.parametrize(("training", "says"), BAD, ids=[" ".join(map(str, given.values())) for given, _ in BAD])
def test_what_is_no_objective_advantage_or_method_is_one_line_with_its_key(mine, training, says):
    with pytest.raises(ValueError, match=says) as error:
        check(mine, **training)
    assert "\n" not in str(error.value) and "training." in str(error.value)


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (
            {"method": "semi_ar"},
            "training.method is 'semi_ar'; choose from coupled, random_masking, elbo, semi-ar.*mean 'semi-ar'",
        ),
        (
            {"method": "TraceRL"},
            "training.method=TraceRL is for rl.py; SFT knows coupled, random_masking, elbo, semi-ar, trace, ar",
        ),
        ({"method": "ar"}, "training.method=ar needs a model that predicts the next token"),
    ],
)
def test_methods_of_fine_tuning(mine, training, says):
    with pytest.raises(ValueError, match=says):
        check(mine, "sft", **training)
    check(mine, "sft", method="methods.py:fine_tuning")
    check(mine, "sft", "full", method="ar")


def test_what_fits_is_taken_with_its_parameters(mine):
    training = {"objective": "objectives.py:good", "objective_params": {"alpha": 2, "kind": "other"}, "eps": 0.1}
    method = check(
        mine, **training, method="methods.py:everything", method_params={"share": 0.25}, advantage="centered"
    )
    objective = objective_of(make_config(training=training | {"objective": f"{mine}/objectives.py:good"}).training)
    assert dict(objective.params) == {"alpha": 2, "kind": "other", "steps": [1, 2], "eps": 0.1}
    canvas = Canvas(np.array([7, 8]), np.array([1, 2]), np.array([True] * 2), np.zeros(2, int), np.zeros(2, int), 0)
    (copy,) = method(canvas, make_config().training, np.random.default_rng(0))
    assert copy.weight == 0.25 and not method.as_sampled
    given = {"advantage": f"{mine}/advantages.py:ranks", "advantage_params": {"power": 2}}
    assert advantage_of(make_config(training=given).training)(np.array([0.5, 0.0])).tolist() == [0.25, 0.0]


def test_a_method_says_itself_that_its_masks_are_the_samplers(mine):
    assert check(mine, method="methods.py:mine").as_sampled
    assert check(mine, "sft", method="methods.py:mine").as_sampled
    assert method_of(make_config().training, "rl").as_sampled


def test_whole_responses_and_sums_make_what_is_no_sum_over_tokens_one(mine):
    check(mine, objective="objectives.py:whole_sequence_ratio")


def test_parameters_are_typed_on_the_command_line(tmp_path):
    from configs import load_config

    (tmp_path / "run.yaml").write_text("training: {objective_params: {beta: 0.5}}\n")
    arguments = ["training.objective_params.eps=0.1", "training.objective_params.kl_estimator=k1"]
    training = load_config([f"config={tmp_path}/run.yaml", *arguments]).training
    assert dict(objective_of(training).params) == {
        **{"eps": 0.1, "beta": 0.5, "kl_estimator": "k1"},
        **{"eps_low": None, "eps_high": None, "dual_clip": None, "nll_weight": 0.0},
    }


def test_a_file_is_found_from_where_the_command_is_typed_and_then_in_the_repository(mine, monkeypatch):
    monkeypatch.chdir(mine)
    assert (
        objective_of(make_config(training={"objective": "objectives.py:bare"}).training).given == "objectives.py:bare"
    )
    inside = make_config(training={"advantage": "train/algorithm/advantages.py:centered"}).training
    assert advantage_of(inside)(np.array([1.0, 0.0])).tolist() == [0.5, -0.5]
