"""dLLM-RL's spellings of keys. They end here: where a YAML file, the command line or the config.yaml of an earlier run
is read, each becomes the key that the schema has."""

import copy
import re
import warnings
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.tree import flat, pop, put

_DECODING = {
    "max_token": "max_new_tokens",
    "max_gen_length": "max_new_tokens",
    "denoising_steps_per_block": "steps_per_block",
    "remasking_strategy": "strategy",
    "dynamic_threshold": "threshold",
    "use_cache": "cache",
    "max_active": "max_slots",
    "batch_size": "max_slots",
}

RENAMED: dict[str, str] = {
    **{f"{part}.{old}": f"{part}.{new}" for part in ("rollout", "evaluation") for old, new in _DECODING.items()},
    "training.use_kl_estimator_k3": "training.kl_estimator",
    "model.process_reward_model": "judge.local",
    "model.process_reward_chunk_size": "judge.chunk_tokens",
    "rollout.reward_model.reward_chunk_length": "judge.chunk_tokens",
    "rollout.reward_model.k_sample": "judge.samples",
    "rollout.reward_model.max_model_len": "judge.max_model_len",
    "rollout.reward_model.max_generation_token": "judge.max_tokens",
    "rollout.reward_model.temperature": "judge.temperature",
    "optimizer.params.policy_learning_rate": "optimizer.params.learning_rate",
    "reward.strict_len_check": "training.truncated",
    "model.clip_model_path": "reward.clip_model",
    "vq_model_path": "model.vq_model_path",
    "image_resolution": "model.image_resolution",
    "answer_must_in_box": "reward.answer_must_in_box",
}
"""dLLM-RL's key -> the key here."""

RETIRED: dict[str, str] = {
    "wandb.entity": "set WANDB_ENTITY",
    "wandb.resume": "the tracker resumes with the run",
    "experiment.function": "rl.py always trains and evaluates",
    "experiment.current_epoch": "the newest checkpoint is found by itself",
    "experiment.node_index": "it comes from the environment (MLP_ROLE_INDEX)",
    "experiment.start_from_scratch": "a folder with the same config is resumed; experiment.overwrite deletes another's",
    "system.HTTP_PROXY": "set HTTP_PROXY in the environment",
    "system.HF_HOME": "set HF_HOME in the environment",
    "system.reward_env_name": "the Python that the command runs in is used",
    "system.env_name": "the Python that the command runs in is used",
    "system.envs_dir": "the Python that the command runs in is used",
    "system.base_dir": "paths are looked up from where the command is typed, then in this repository",
    "evaluation.tensor_parallel_size": "an evaluation samples as the rollouts do (rollout.tensor_parallel_size)",
    "optimizer.params.scale_lr": "the learning rate is taken as given",
    "lr_scheduler.params.learning_rate": "optimizer.params.learning_rate is used",
}
"""dLLM-RL's keys that have no effect here -> what takes their place. They load, with a warning that names them."""

SWITCHES = {
    "use_cache": {True: "prefix", False: "auto"},
    "use_kl_estimator_k3": {True: "k3", False: "k1"},
    "strict_len_check": {True: "wrong", False: "keep"},
}
SIZED_BY_MACHINE = ("rollout.max_slots", "evaluation.max_slots", "training.max_tokens_per_microbatch")
"""Keys that the machine sizes where they are `auto` (null)."""
_UNSET_WHERE_NULL = ("max_gen_length", "batch_size")
_TRAIN_VISION = "training.train_vision"
_REFERENCE = re.compile(r"\$\{(\.*)([A-Za-z_][\w.]*)\}")


def rename(tree: dict[str, Any], where: str) -> dict[str, str]:
    """Moves dLLM-RL's keys of one source to their names here, and references to them (`${rollout.max_token}`). Returns
    new key -> the key that was typed. ValueError where both spellings of a key are in the source (`where`)."""
    _rename_references(tree, ())
    _switch_evaluation(tree)
    names = set(flat(tree))
    typed: dict[str, str] = {}
    for old in [name for name in RENAMED if name in names]:
        new, value = RENAMED[old], pop(tree, old)
        last = old.rpartition(".")[2]
        if value is None and last in _UNSET_WHERE_NULL:
            continue
        if new in names or new in typed:
            raise ValueError(f"{old} and {typed.get(new, new)} are both in {where}: they mean the same, keep one.")
        typed[new] = old
        put(tree, new, _switched(old, value) if last in SWITCHES else value)
    for name in SIZED_BY_MACHINE:
        if flat(tree).get(name) == "auto":
            put(tree, name, None)
    # a process reward model there is a judge of mode process here
    if typed.get("judge.local") == "model.process_reward_model":
        tree["judge"]["local"] = tree["judge"]["local"] or None
        if tree["judge"]["local"]:
            tree["judge"].setdefault("mode", "process")
    return typed


def _switch_evaluation(tree: dict[str, Any]) -> None:
    """Takes out evaluation.if_eval, in whose place evaluation.eval_dataset is null where there is no evaluation."""
    if (wanted := flat(tree).get("evaluation.if_eval")) is None:
        return
    pop(tree, "evaluation.if_eval")
    if not _is_true("evaluation.if_eval", wanted):
        put(tree, "evaluation.eval_dataset", None)
    elif "evaluation.eval_dataset" not in flat(tree):
        warnings.warn("evaluation.if_eval has no effect: evaluation.eval_dataset names what is evaluated", stacklevel=4)


def name_false(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with false, a word of YAML, as the name that it is among the values of training.train_vision."""
    if str(flat(tree).get(_TRAIN_VISION)) == "False":
        tree = copy.deepcopy(tree)
        put(tree, _TRAIN_VISION, "false")
    return tree


def drop_what_lost(tree: dict[str, Any]) -> None:
    """The config.yaml that a run wrote before the schema had one name for each key holds both spellings of some: leaves
    the one that counted then."""
    for decode in (tree.get("rollout") or {}, tree.get("evaluation") or {}):
        for first, second in (("max_gen_length", "max_token"), ("batch_size", "max_active")):
            if first in decode and second in decode:
                decode.pop(first if decode[first] is None else second)
        if "use_cache" in decode and "cache" in decode:
            decode.pop("cache" if decode["use_cache"] and decode["cache"] == "auto" else "use_cache")
    training = tree.get("training") or {}
    if "use_kl_estimator_k3" in training and "kl_estimator" in training:
        training.pop("kl_estimator" if training["kl_estimator"] is None else "use_kl_estimator_k3")
    (tree.get("experiment") or {}).pop("start_from_scratch", None)


def _switched(old: str, value: Any) -> Any:
    """The name that a switch of dLLM-RL stands for; a reference to another switch is one to the key here already."""
    given = value
    if isinstance(value, str) and "${" in value:
        try:
            value = OmegaConf.create({"value": value}).value  # ${oc.env:...}
        except OmegaConfBaseException:
            return value
    return SWITCHES[old.rpartition(".")[2]][_is_true(old, value, given)]


def _is_true(key: str, value: Any, given: Any = None) -> bool:
    known = {True: True, False: False, "true": True, "false": False}
    if not isinstance(value, bool | str) or value not in known:
        raise ValueError(f"{key} is {value if given is None else given!r}; it must be of type bool.")
    return known[value]


def _rename_references(node: Any, path: tuple[str, ...]) -> Any:
    """Rewrites `${old}` and `${..old}` in the texts under `node`, which stands at `path`, in place."""

    def renamed(found: re.Match[str]) -> str:
        dots, name = found.groups()
        parts = [*path[: len(path) - len(dots)], name] if dots else [name]
        new = RENAMED.get(".".join(parts))
        return f"${{{new}}}" if new else found[0]

    if isinstance(node, str):
        return _REFERENCE.sub(renamed, node)
    if isinstance(node, dict | list):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            node[key] = _rename_references(value, (*path, str(key)))
    return node
