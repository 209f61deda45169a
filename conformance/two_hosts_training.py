"""A training in one of the hosts of :mod:`conformance.two_hosts`, which follows it by the lines of JSON that it prints."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from conformance.kill_settings import SMALL
from sb3_ezm import EZM, FullCheckpointCallback, make_multitask_env
from sb3_ezm.checkpoint import list_checkpoints
from sb3_ezm.distributed import RayVecEnv
from sb3_ezm.distributed.replay_shard import split

SETTINGS: dict[str, Any] = {**SMALL, "train_freq": 4, "gradient_steps": 1, "learning_starts": 16, "buffer_size": 20_000}


def say(event: str, **values: Any) -> None:
    """
    :param event: what has happened
    :param values: more about it
    """
    print(json.dumps({"event": event, **values}), flush=True)


def digests(model: EZM) -> dict[str, str]:
    """
    :param model: a model
    :return: of its weights and of its replay
    """
    arrays = [values.numpy() for values in model.policy.state_dict().values()]
    weights = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    replay = hashlib.sha256()
    for ring in model.replay_buffer.state_dict()["replays"]:
        _, columns = split(ring)
        for name in sorted(columns):
            replay.update(np.ascontiguousarray(columns[name]).tobytes())
    return {"weights": weights, "replay": replay.hexdigest()}


def places(model: Any, env: Any) -> dict[str, list[str]]:
    """
    :param model: that has learned
    :param env: its environment
    :return: addresses of the hosts of all actors, by kind
    """
    kinds = {"collector": [worker.actor for worker in env._group.workers]}
    if (group := getattr(model.replay_buffer, "_group", None)) is not None:
        kinds["shard"] = group.processes()
    if (group := getattr(model.learner, "_group", None)) is not None:
        kinds["reanalyzer"] = group.actors

    def where(_: Any) -> str:
        import ray

        return str(ray.util.get_node_ip_address())

    return {kind: env._ray.get([actor.__ray_call__.remote(where) for actor in actors]) for kind, actors in kinds.items()}


def traffic() -> int:
    """
    :return: bytes that this host has sent and received
    """
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            return int(counts.split()[0]) + int(counts.split()[8])
    return 0


def make_env(args: argparse.Namespace, ahead: int = 0) -> Any:
    """
    :param args: of the command line
    :param ahead: rounds
    :return: environments in collectors
    """
    place = {"collectors": args.collectors, "address": args.address, "time_limit": args.limit, "rounds_ahead": ahead}
    return make_multitask_env("toy", args.copies, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs=place)


def make_model(args: argparse.Namespace, env: Any, **settings: Any) -> EZM:
    """
    :param args: of the command line
    :param env: environments
    :param settings: other than usual
    :return: a new model
    """
    runtime = {"replay_shards": args.shards, "reanalyzers": args.reanalyzers}
    if args.shards or args.reanalyzers:
        runtime = {**runtime, "ray_address": args.address, "learner_time_limit": args.limit}
    return EZM("MultiInputPolicy", env, **{**SETTINGS, **settings}, runtime_kwargs=runtime)


def train(args: argparse.Namespace) -> None:
    """
    Learn, and say what came of it.

    :param args: of the command line
    """
    env = make_env(args, args.ahead)
    folder = None if args.folder is None else Path(args.folder)
    is_old = folder is not None and bool(list_checkpoints(folder))
    model: Any = EZM.resume(folder, env) if is_old and folder is not None else make_model(args, env)
    saving = None if folder is None else FullCheckpointCallback(args.save_every, folder, 2)
    begun, before, first = 0.0, 0, model.num_timesteps
    latest = time.monotonic()

    def tell(local: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal begun, before, latest
        steps, now = local["self"].num_timesteps, time.monotonic()
        if not begun and model._n_updates > 0:
            begun, before = now, traffic()
            say("placed", places=places(model, env))
        say("step", step=steps, pause=round(now - latest, 2))
        latest = now
        return True

    from stable_baselines3.common.callbacks import CallbackList, ConvertCallback

    callbacks = CallbackList([ConvertCallback(tell), *([] if saving is None else [saving])])
    model.learn(args.steps - first, callback=callbacks, reset_num_timesteps=not is_old)
    seconds, carried = time.monotonic() - begun, traffic() - before
    losses = getattr(model.replay_buffer, "losses", 0)
    restarts = {"collector": env.restarts, "reanalyzer": getattr(model.learner, "restarts", 0), "shard": losses}
    say("done", **digests(model), seconds=seconds, bytes=carried, restarts=restarts, places=places(model, env), first=first)


def measure(args: argparse.Namespace) -> None:
    """
    Measure what goes over the wire, without and with new weights in every round, and how fast steps are.

    :param args: of the command line
    """
    time.sleep(2.0)
    idle = traffic()
    time.sleep(5.0)
    idle = (traffic() - idle) // 5
    env = make_env(args)
    wide = {"latent_size": 256, "num_blocks": 2, "head_layers": (256,), "projector_size": 256}
    model: Any = make_model(args, env, policy_kwargs=wide, learning_starts=64 * env.num_envs)
    model.learn(16 * env.num_envs)
    found: dict[str, Any] = {"idle": idle, "envs": env.num_envs, "places": places(model, env)}
    for name, steps in (("random", 48), ("random again", 4), ("learning", 48)):
        before, versions, since = traffic(), env._rounds.broadcast.version, time.monotonic()
        model.learn(steps * env.num_envs, reset_num_timesteps=False)
        versions = env._rounds.broadcast.version - versions
        found[name] = {"bytes": traffic() - before, "seconds": time.monotonic() - since, "steps": steps, "versions": versions}
    tensors = [*model.policy.world_model.parameters(), *model.policy.world_model.buffers()]
    say("measured", weights=sum(tensor.nbytes for tensor in tensors), **found)


def pace(args: argparse.Namespace) -> None:
    """
    Measure steps per second in lockstep and one round ahead, each as soon as a line is read.

    :param args: of the command line
    """
    for ahead in (0, 1):
        env = make_env(args, ahead)
        model = make_model(args, env)
        model.learn(32 * env.num_envs)
        say("ready")
        for line in sys.stdin:
            if line == "next\n":
                break
            before, since = model.num_timesteps, time.monotonic()
            model.learn(args.steps, reset_num_timesteps=False)
            say("rate", ahead=ahead, rate=(model.num_timesteps - before) / (time.monotonic() - since))
        env.close()


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "measure", "pace"))
    parser.add_argument("--address")
    parser.add_argument("--collectors", type=int, default=2)
    parser.add_argument("--copies", type=int, default=1, help="of each of the environments")
    parser.add_argument("--shards", type=int, default=0)
    parser.add_argument("--reanalyzers", type=int, default=0)
    parser.add_argument("--ahead", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=15, help="calls of env.step")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds")
    parser.add_argument("--folder", help="of checkpoints")
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.showwarning = lambda message, *_, **__: say("warning", text=str(message))
    try:
        {"train": train, "measure": measure, "pace": pace}[args.what](args)
    except Exception as error:
        say("error", kind=type(error).__name__, text=str(error))
        raise


if __name__ == "__main__":
    main()
