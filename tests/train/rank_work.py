"""What ranks do in test_train_ranks.py: functions that a fresh process can import."""

import os
import signal
import time

import pytest
import torch
from helpers import random_prompts, tiny_model
from trainees import make_config, policy_of, sampled, shifted, updater_of

from configs.schema import TrainingConfig
from models import ValueModel
from models.copies import num_parameters, parallel_copy
from models.lora import Adapters, is_adapter
from runtime import ranks, stopping
from sample import Sampler, SamplingConfig
from train import rl, sft
from train.algorithm.replay import Replayer, replay
from train.distributed.accelerator import make_accelerator
from train.distributed.sharding import require_equal_weights, sample
from train.learner.critic import Critic
from train.setup.models import copy_to_sample, frozen_reference, make_trained_model

CPU = torch.device("cpu")


def join():
    ranks.join("cpu", 60.0)


def sections(**more):
    return {
        "training": {"rows_per_update": 9, **more.pop("training", {})},
        "optimizer": {"params": {"learning_rate": 1e-3, "value_learning_rate": 2e-3, "epsilon": 1e-4}},
        **more,
    }


def rl_updates(
    family="sdar",
    lengths=(5, 8, 3, 10, 6),
    n=2,
    with_value=False,
    poison=None,
    engine="ddp",
    precision="no",
    model_config=None,
    **training,
):
    """Two steps of updates of one set of rollouts: metrics, weights, and whether ranks agree."""
    join()
    model = tiny_model(family, **(model_config or {}))
    rollouts = shifted(sampled(model, lengths, n=n), 0.3)
    config = make_config(**sections(training=training))
    accelerator = make_accelerator(precision, CPU, engine)
    policy = policy_of(config, model, accelerator, SamplingConfig(max_new_tokens=16))
    critic = None
    if with_value:
        value = ValueModel(tiny_model(family, **(model_config or {})))
        critic = Critic(
            value,
            updater_of(config, value, accelerator, config.optimizer.params.value_learning_rate),
            policy.replay,
            policy.schedule,
        )
    advantages = [(-1.0) ** i * (1 + i / 7) for i in range(len(rollouts))]
    if poison is not None:
        advantages[poison] = float("nan")
    metrics = []
    for step in (1, 2):
        rewards = [max(0.0, number) for number in advantages]
        batch, found = policy.batch(rollouts, advantages, "reward" if critic else "advantage", rewards), {}
        if critic is not None:
            batch, found = critic.step(batch, rollouts, step)
        metrics.append(policy.train(batch, step).metrics | found)
    require_equal_weights(model, "policy")
    weights = whole(policy.updater)
    if critic is not None:
        weights |= {f"value {name}": weight for name, weight in whole(critic.updater).items()}
    return metrics, weights


def whole(updater):
    """The weights; under bf16 their masters, on rank 0 alone, of which the weights must be the rounded ones."""
    weights = {name: weight.detach().clone() for name, weight in updater.engine.weights()}
    if not updater.half:
        return weights
    with updater.engine.whole_on_main():
        named = updater.engine.module.named_parameters() if ranks.is_main() else ()
        masters = {name: p.detach().clone() for name, p in named}
    frozen = {name for name, p in updater.engine.module.named_parameters() if not p.requires_grad}
    masters |= {name: masters[name].bfloat16() for name in frozen & masters.keys()}
    assert all(torch.equal(weights[name], masters[name].bfloat16()) for name in masters)
    assert any(not torch.equal(weights[name].float(), masters[name]) for name in masters) or not ranks.is_main()
    return masters


def rollouts_of_all(slow_rank=None, max_slots=2, **settings):
    """(rollouts as gathered, how many samples this rank took)."""
    join()
    model = tiny_model("sdar")
    sampler = Sampler(model, SamplingConfig(max_new_tokens=12, threshold=0.4, max_slots=max_slots, **settings))
    prompts = [[3 + i % 7, 9, 4, 11 + i % 5][: 1 + i % 4] for i in range(24)]
    keys = [("task", i, j) for i in range(24) for j in range(2)]
    taken, told = [], []
    generate = sampler.generate

    def counted(*args, take=None, **named):
        def slowly():
            if ranks.rank() == slow_rank:
                time.sleep(0.25)
            places = list(take())
            taken.extend(places)
            return places

        return generate(*args, take=slowly if take else None, **named)

    sampler.generate = counted
    rollouts = sample(sampler, prompts, 2, keys, told.append)
    return rollouts, len(taken), sum(told)


def whole_run(kind, config_arguments):
    from configs import load_config

    return {"rl": rl.run, "sft": sft.run}[kind](load_config(config_arguments))


def evaluation_run(config_arguments):
    from configs import load_config
    from train import evaluation

    return evaluation.run(load_config(config_arguments))


def other_weights(adapters=False, engine="ddp"):
    """Models, or adapters on one model, from another seed on each rank."""
    join()
    model = tiny_model("sdar", seed=0 if adapters else ranks.rank())
    if adapters:
        model.add_adapters(Adapters(4, 8.0), "base", seed=ranks.rank())
    updater_of(make_config(), model, make_accelerator("no", CPU, engine))


def held(kind):
    """Numbers that this rank holds of weights and of each of Adam's moments, and the model's numbers in all."""
    join()
    model = tiny_model("sdar")
    total = sum(p.numel() for p in model.parameters())
    engine = updater_of(make_config(), model, make_accelerator("no", CPU, kind)).engine
    if kind == "fsdp2":
        parts = [p.to_local() for group in engine.optimizer.param_groups for p in group["params"]]
        return sum(p.to_local().numel() for p in model.parameters()), sum(map(torch.numel, parts)), total
    zero = engine.optimizer.optimizer
    parts = zero.single_partition_of_fp32_groups if kind == "zero2" else zero.fp32_partitioned_groups_flat
    return sum(p.numel() for p in model.parameters()), sum(map(torch.numel, parts)), total


def read_in_shards(folder, engine, precision="bf16"):
    """The most bytes that this rank's tensors take while it loads a model and takes its shard, those of the whole model
    in fp32, and the weights that it ends up with."""
    from memory_meter import Meter

    join()
    config = make_config(
        model={"pretrained_model": str(folder)},
        experiment={"deepspeed_file": f"1_node_2_cpus_{engine}"},
        training={"mixed_precision": precision},
    )
    accelerator = make_accelerator(precision, CPU, "fsdp2" if engine == "fsdp2" else "zero3")
    with Meter() as meter:
        updater = updater_of(config, make_trained_model(config, precision), accelerator)
    elements = sum(elements_of(p) for p in updater.engine.module.parameters())
    return meter.peak, 4 * elements, whole(updater)


def elements_of(parameter):
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def adapter_updates(folder, engine, **training):
    """Two steps of updates of adapters on one base: metrics, and the adapters of rank 0."""
    join()
    training = {"kl_to": "reference", "beta": 0.1, "mixed_precision": "no", **training}
    sharing = {"deepspeed_file": f"1_node_2_cpus_{engine}"} if engine != "ddp" else {}
    config = make_config(
        **sections(
            training=training, lora={"rank": 4, "dropout": 0.1}, model={"pretrained_model": str(folder)},
            experiment=sharing,
        )
    )  # fmt: skip
    model = make_trained_model(config, "no")
    sampling = SamplingConfig(max_new_tokens=16)
    accelerator = make_accelerator("no", CPU, engine.replace("deepspeed_", ""))
    rollouts = shifted(sampled(tiny_model("sdar"), (5, 8, 3, 10, 6), n=2), 0.3)
    policy = policy_of(config, model, accelerator, sampling)
    policy.reference = frozen_reference(config, model, "no", policy.updater.model)
    advantages = [(-1.0) ** i * (1 + i / 7) for i in range(len(rollouts))]
    metrics = [policy.train(policy.batch(rollouts, advantages), step).metrics for step in (1, 2)]
    state = policy.updater.engine.state_dict()
    policy.updater.engine.load_state_dict(state)
    with policy.updater.engine.whole_on_main():
        named = model.named_parameters() if ranks.is_main() else ()
        adapters = {name: p.detach().clone() for name, p in named if is_adapter(name)}
    moments = {str(i): s["exp_avg"].clone() for i, s in state["state"].items()} if ranks.is_main() else {}
    return metrics, adapters, moments


def offloaded_updates(engine, **arguments):
    """`rl_updates` with optimizer, gradients and masters in host memory."""
    patch = pytest.MonkeyPatch()
    make = make_accelerator
    patch.setitem(globals(), "make_accelerator", lambda *given: make(*given, offload=True))
    return rl_updates(engine=engine, **arguments)


def team_rollouts(families):
    """Of tiny models, sampled by all ranks as one team: (ids, steps, log-probabilities) of each rollout, and the share
    of the first model's weights that this rank has."""
    join()
    team, found, parts = ranks.team(ranks.world_size()), [], []
    for family in families:
        model = tiny_model(family)
        part = model if team is None else parallel_copy(model, team, torch.float32, CPU)
        sampler = Sampler(part, SamplingConfig(max_new_tokens=12, block_size=4, temperature=1.0, threshold=0.4))
        if team is not None:
            sampler.update_weights(model.named_parameters())
        prompts = random_prompts([9, 1, 6, 3])
        rollouts = sample(sampler, prompts, 2, [(i, j) for i in range(4) for j in range(2)], lambda count: None)
        found += [(r.canvas_ids, r.canvas_step_map, list(r.canvas_logprobs)) for r in rollouts]
        parts.append(sum(p.numel() for p in part.parameters()) / num_parameters(part))
        assert num_parameters(part) == sum(p.numel() for p in model.parameters())
    return found, max(parts)


def team_after_update(folder, engine, size):
    """Token ids that a run's sampler gives before and after an update."""
    join()
    sharing = {"deepspeed_file": f"1_node_2_cpus_{engine}"} if engine != "ddp" else {}
    config = make_config(
        model={"pretrained_model": str(folder)}, experiment=sharing, rollout={"tensor_parallel_size": size}
    )
    model = make_trained_model(config, "no")
    apart = copy_to_sample(config, model, torch.float32, CPU)
    accelerator = make_accelerator("no", CPU, engine.replace("deepspeed_", ""))
    sampling = SamplingConfig(max_new_tokens=16, temperature=1.0, threshold=0.4)
    updater = updater_of(config, model, accelerator, 0.05)
    sampler = Sampler(apart or model, sampling)
    sampler.update_weights(updater.engine.weights())
    rows = policy_rows(sampled(tiny_model("sdar"), (5, 8, 3, 10), n=2))
    found = []
    for _ in range(2):
        prompts, keys = random_prompts([9, 1, 6, 3]), [(i, j) for i in range(4) for j in range(2)]
        found.append([r.token_ids for r in sample(sampler, prompts, 2, keys, lambda count: None)])
        updater.update(rows, range(len(rows)), lambda logp, batch: (-logp.sum() / 50, {}))
        sampler.update_weights(updater.engine.weights())
    return found


def policy_rows(rollouts):
    replayer = Replayer("block", False, 1, 4)
    return [row for rollout in rollouts for row in replay(rollout, replayer, TrainingConfig())]


def other_engines():
    join()
    make_accelerator("no", CPU, f"zero{2 + ranks.rank()}")


def sparing_updates(what, engine):
    """`rl_updates` with layers or chunks of logits computed anew in the backward pass, or with parameters that are
    larger than the buckets that gradients are summed in."""
    patch, made = pytest.MonkeyPatch(), tiny_model

    def recomputing(*given, **named):
        model = made(*given, **named)
        model.enable_gradient_checkpointing()
        return model

    if what == "layers":
        patch.setitem(globals(), "tiny_model", recomputing)
    elif what == "logits":
        patch.setattr("models.head.LOGITS_CHUNK_ELEMENTS", 40)
    else:
        patch.setattr("train.distributed.zero.REDUCE_BUCKET_ELEMENTS", 500)
        patch.setattr("train.distributed.sharding.BUCKET_ELEMENTS", 500)
    return rl_updates(engine=engine)


def fails_on_main():
    join()
    return ranks.on_main(_raises)


def _raises():
    raise ValueError("the user's mistake")


def a_rank_never_comes():
    ranks.join("cpu", 3.0)
    if ranks.rank() == 1:
        time.sleep(6.0)
        os._exit(0)
    return ranks.gather(1)


def a_rank_dies():
    join()
    if ranks.rank() == 1:
        os._exit(9)
    return ranks.gather(1)


def shares():
    """Every collective with something uneven in it."""
    join()
    sums = ranks.summed({"a": 1.0, f"only {ranks.rank()}": 2.0})
    counts = ranks.SharedCounts("n", "m")
    numbers = [counts.add("n", 2) for _ in range(3)]
    assert counts.add("m", 0) == 0
    return sums, ranks.gather("x" * (1000 * ranks.rank())), numbers


def rl_updates_with(arguments, training):
    """`rl_updates` with a training section."""
    return rl_updates(*arguments, **training)


def rl_updates_of_each(objectives, arguments, training):
    """`rl_updates` with a training section, by objective."""
    return {name: rl_updates(*arguments, **training, objective=name) for name in objectives}


def update_given_up():
    """The last rank is asked to stop in its first micro-batch: whether the weights stayed; then the same update again,
    without the request: its weights, and those of an updater that was never asked."""
    join()
    stopping.listen()
    rows = policy_rows(sampled(tiny_model("sdar"), (5, 8, 3, 10, 6), n=2))
    stays, last = tiny_model("sdar"), ranks.rank() == ranks.world_size() - 1
    config = make_config(**sections(training={"max_tokens_per_microbatch": 48}))
    updaters = [updater_of(config, model, make_accelerator("no", CPU)) for model in (stays, tiny_model("sdar"))]
    before = {name: weight.clone() for name, weight in stays.state_dict().items()}

    def loss_of(logp_N, micro):
        return -logp_N.sum() / 100, {"tokens": torch.tensor(float(len(logp_N)))}

    def asked(logp_N, micro):
        if last:
            stopping.ask(signal.SIGTERM)
        return loss_of(logp_N, micro)

    with pytest.raises(stopping.Stopped):
        updaters[0].update(rows, range(len(rows)), asked, may_stop=True)
    untouched = all(torch.equal(weight, before[name]) for name, weight in stays.state_dict().items())
    untouched = untouched and not updaters[0].engine.optimizer.state_dict()["state"] and updaters[0].updates == 0
    stopping.listen()
    for updater in updaters:
        updater.update(rows, range(len(rows)), loss_of, may_stop=True)
    again, straight = ({name: w.clone() for name, w in u.model.state_dict().items()} for u in updaters)
    return (
        untouched,
        all(torch.equal(again[name], straight[name]) for name in again),
        any(not torch.equal(again[name], before[name]) for name in again),
    )
