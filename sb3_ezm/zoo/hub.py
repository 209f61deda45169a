"""Evaluate an agent of RL Zoo, describe it, and upload it to the Hugging Face Hub. Needs RL Zoo."""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from huggingface_hub import HfApi
from huggingface_sb3 import EnvironmentName, ModelName
from rl_zoo3.utils import StoreDict, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import MAX_ENVS_PER_TASK, EvaluationResult, TaskResult, evaluate_tasks
from sb3_ezm.ezm import EZM
from sb3_ezm.files import write_text
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.tasks.statistics import report_of
from sb3_ezm.tasks.task_set import TaskSpec
from sb3_ezm.video import VideoUnavailableError, record_episode
from sb3_ezm.zoo.card import MULTITASK_KEYWORDS, CardFacts, model_card
from sb3_ezm.zoo.hyperparams import ALGORITHM
from sb3_ezm.zoo.repeats import KEYWORD
from sb3_ezm.zoo.tasks import find_tasks, look_at

VERSION = (Path(__file__).parent.parent / "version.txt").read_text(encoding="utf-8").strip()
STATISTICS, _SAVED_STATISTICS = "vec_normalize.pkl", "vecnormalize.pkl"  # RL Zoo's names on the hub and on disk
VIDEO = "replay.mp4"
_OPTIONAL = (STATISTICS, VIDEO)  # what not every agent has
WRAPPERS = ("normalize", "frame_stack", "env_wrapper", "vec_env_wrapper")  # settings that change what an agent observes
_PACKAGES = ("stable_baselines3", "torch", "gymnasium", "numpy")


def push_to_hub() -> None:
    """
    The program ``python -m sb3_ezm.zoo push_to_hub``.

    RL Zoo's own will not do: it knows nothing about tasks, and RL Zoo 2.9.2 imports a name that its current
    Hugging Face package no longer has.
    """
    args = _parse()
    if args.algo != ALGORITHM:
        raise ConfigurationError(f"This uploads agents of {ALGORITHM!r} only, got --algo {args.algo}.")
    folder = package(args)
    if args.dry_run:
        print(f"Packaged, not uploaded: {folder}")
        return
    print(f"Uploading {folder} to {args.repo_id}")
    print(f"The agent is at {upload(folder, args.repo_id, args.commit_message, args.private)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate an agent, write its model card and upload both.")
    parser.add_argument("--env", type=EnvironmentName, required=True, help="environment id")
    parser.add_argument("-f", "--folder", required=True, help="log folder (default logs)")
    parser.add_argument("--algo", default=ALGORITHM, help="algorithm: ezm")
    parser.add_argument(
        "--exp-id", type=int, default=0, help="experiment id (default 0: the latest, -1: no experiment folder)"
    )
    parser.add_argument("--load-best", action="store_true", help="the best model instead of the last")
    parser.add_argument("--load-checkpoint", type=int, help="the checkpoint of these steps instead of the last model")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint instead of the last model")
    parser.add_argument("-orga", "--organization", required=True, help="user or organization on the hub")
    parser.add_argument("-name", "--repo-name", help="repository (default ezm-<environment>)")
    parser.add_argument("-m", "--commit-message", default="Add the agent", help="commit message")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--dry-run", action="store_true", help="package only, upload nothing")
    parser.add_argument("-o", "--output-folder", type=Path, default=Path("hub"), help="where to package (default hub)")
    parser.add_argument("--eval-episodes", type=int, default=10, help="evaluated episodes of each task (default 10)")
    parser.add_argument("--stochastic", action="store_true", help="sample the evaluated actions")
    parser.add_argument("--no-render", action="store_true", help="record no video")
    parser.add_argument(
        "-n", "--n-timesteps", type=int, default=1000, help="longest video in decisions of the agent (default 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the evaluation (default 0)")
    parser.add_argument("--device", default="auto", help="PyTorch device (default auto)")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="further keywords of the environment")
    args = parser.parse_args()
    args.repo_id = f"{args.organization}/{args.repo_name or ModelName(args.algo, args.env)}"
    return args


def package(args: argparse.Namespace) -> Path:
    """
    Evaluate an agent and collect its files, with the names that RL Zoo's ``load_from_hub`` looks for.

    :param args: the command line
    :return: folder: model, model card, results, settings, curves of the training, and a video if one can be drawn
    :raises ConfigurationError: if there is no such agent
    """
    checkpoint = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    try:
        _, model_path, log_path = get_model_path(args.exp_id, args.folder, args.algo, args.env, *checkpoint)
    except (AssertionError, ValueError) as error:
        raise ConfigurationError(f"There is no such agent: {error}") from error
    run, name = Path(log_path), ModelName(args.algo, args.env)
    settings, _ = get_saved_hyperparams(str(run / args.env), test_mode=True)
    env_kwargs = _env_kwargs(run / args.env, settings, args.env_kwargs)
    model = EZM.load(model_path, device=args.device, seed=args.seed)
    result = evaluate(model, args, run, settings, env_kwargs)
    folder: Path = args.output_folder / args.repo_id.split("/")[1]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in _OPTIONAL:  # of an earlier agent
        (folder / stale).unlink(missing_ok=True)
    model.save(folder / name.filename)
    for file in ("args.yml", "config.yml"):
        shutil.copy(run / args.env / file, folder / file)
    if settings.get("normalize"):
        shutil.copy(run / args.env / _SAVED_STATISTICS, folder / STATISTICS)
    write_text(folder / "env_kwargs.yml", yaml.safe_dump(env_kwargs))
    write_text(folder / "results.json", json.dumps(result.to_dict(), indent=1))
    _copy_curves(run, folder)
    wrappers = tuple(name for name in WRAPPERS if settings.get(name))
    wrapped = look_at(args.env.gym_id, env_kwargs).wrapped
    facts = CardFacts(
        env_id=args.env.gym_id,
        repo_id=args.repo_id,
        filename=name.filename,
        result=result,
        settings={key: settings[key] for key in settings if key not in ({"normalize", "normalize_kwargs"} - {*wrappers})},
        env_kwargs={key: value for key, value in env_kwargs.items() if not (wrapped and key == KEYWORD)},
        action_repeat=env_kwargs[KEYWORD] if wrapped else 1,
        timesteps=model.num_env_steps,
        parameters=sum(parameter.numel() for parameter in model.policy.world_model.parameters()),
        versions={"sb3_ezm": VERSION, **{name: metadata.version(name) for name in _PACKAGES}},
        deterministic=not args.stochastic,
        wrappers=wrappers,
    )
    write_text(folder / "README.md", model_card(facts))
    if not args.no_render:
        _film(model, args, run, settings, env_kwargs, folder / VIDEO)
    return folder


def evaluate(
    model: EZM, args: argparse.Namespace, run: Path, settings: dict[str, Any], env_kwargs: dict[str, Any]
) -> EvaluationResult:
    """
    Play the same number of episodes of every task, or of the one environment.

    :param model: the agent
    :param args: the command line
    :param run: folder of the training
    :param settings: settings of the training
    :param env_kwargs: keywords of the environment
    :return: the episodes
    """
    deterministic = not args.stochastic
    stats = run / args.env / _SAVED_STATISTICS if settings.get("normalize") else None
    if find_tasks(args.env.gym_id, env_kwargs):
        if wrappers := [name for name in ("env_wrapper", "vec_env_wrapper") if settings.get(name)]:
            raise ConfigurationError(
                f"{', '.join(wrappers)}: agents of several tasks are evaluated task by task, without wrappers, so these "
                "results would be those of other observations. Wrap the environments of the tasks themselves."
            )
        env = gym.make(args.env.gym_id, **env_kwargs)
        task_set = env.get_wrapper_attr("task_set")
        env.close()
        copies = min(args.eval_episodes, MAX_ENVS_PER_TASK)
        keywords = {name: env_kwargs[name] for name in MULTITASK_KEYWORDS if name in env_kwargs}
        vec_env = make_multitask_env(task_set, copies, seed=args.seed, **keywords)
        try:
            played = vec_env if stats is None else _normalizing(vec_env, stats)
            return evaluate_tasks(model, None, args.eval_episodes, seed=args.seed, deterministic=deterministic, vec_env=played)
        finally:
            vec_env.close()
    lengths: list[int] = []

    def note_length(found: dict[str, Any], _: dict[str, Any]) -> None:
        """In steps of the environment, as for several tasks; those of `evaluate_policy` are decisions."""
        if (report := report_of(found["info"])) is not None:
            lengths.append(int(found["info"].get("episode_env_steps", report["l"])))

    vec_env = _test_env(args, run, settings, env_kwargs)
    try:
        returns, _ = evaluate_policy(
            model, vec_env, args.eval_episodes, deterministic, callback=note_length, return_episode_rewards=True
        )
    finally:
        vec_env.close()
    assert isinstance(returns, list) and len(lengths) == len(returns)
    size = model.policy.task_set[0]
    spec = TaskSpec(args.env.gym_id, size.observation_size, size.action_size, discrete=size.discrete)
    return EvaluationResult((TaskResult(spec, tuple(map(float, returns)), tuple(lengths)),))


def _normalizing(vec_env: VecEnv, stats: Path) -> VecNormalize:
    normalize = VecNormalize.load(str(stats), vec_env)
    normalize.training = normalize.norm_reward = False
    return normalize


def _test_env(args: argparse.Namespace, run: Path, settings: dict[str, Any], env_kwargs: dict[str, Any]) -> VecEnv:
    """One environment, wrapped as in the training."""
    options = {"seed": args.seed, "should_render": False, "hyperparams": dict(settings), "env_kwargs": env_kwargs}
    # Without `stats_path` RL Zoo stacks no frames either.
    return create_test_env(args.env.gym_id, n_envs=1, stats_path=str(run / args.env), **options)


def upload(folder: Path, repo_id: str, commit_message: str, private: bool = False) -> str:
    """
    Upload a folder to a model repository, which is created if it is missing.

    :param folder: from :func:`package`
    :param repo_id: ``organization/name``
    :param commit_message: what the hub's history says
    :param private: for a new repository
    :return: address of the repository
    """
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    missing = [name for name in _OPTIONAL if not (folder / name).exists()]
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message, delete_patterns=missing)
    return str(url)


def _env_kwargs(folder: Path, settings: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    """As in RL Zoo's programs: from the settings, else from the training's command line, plus those of this command line."""
    saved = yaml.unsafe_load((folder / "args.yml").read_text(encoding="utf-8"))["env_kwargs"]
    return {**(settings.pop("env_kwargs", None) or {}), **(saved or {}), **(given or {})}


def _copy_curves(run: Path, folder: Path) -> None:
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w") as archive:
        for path in [*run.glob("evaluations.npz"), *sorted(run.glob("*.csv"))]:
            archive.write(path, arcname=path.name)


def _film(
    model: EZM, args: argparse.Namespace, run: Path, settings: dict[str, Any], env_kwargs: dict[str, Any], path: Path
) -> None:
    drawn = {**env_kwargs, "render_mode": "rgb_array"}
    env: gym.Env[Any, Any] = (
        gym.make(args.env.gym_id, **drawn)
        if find_tasks(args.env.gym_id, env_kwargs) and not settings.get("normalize")
        else _Single(_test_env(args, run, settings, drawn))
    )
    try:
        record_episode(model, env, path, seed=args.seed, deterministic=not args.stochastic, max_steps=args.n_timesteps)
    except VideoUnavailableError as error:
        print(f"No video: {error}")
    finally:
        env.close()


class _Single(gym.Env[Any, Any]):
    """The only member of a vector environment; observations and actions stay batches of one."""

    def __init__(self, vec_env: VecEnv) -> None:
        self.vec_env, self.metadata = vec_env, vec_env.metadata

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of the episode
        :param options: not used
        :return: observations ``[1, ...]`` and nothing
        """
        self.vec_env.seed(seed)
        return self.vec_env.reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: batch of one
        :return: as Gymnasium's; every end counts as a termination
        """
        observations, rewards, dones, infos = self.vec_env.step(action)
        return observations, float(rewards[0]), bool(dones[0]), False, infos[0]

    def render(self) -> Any:
        """:return: the picture"""
        return self.vec_env.render()

    def close(self) -> None:
        """Close the vector environment."""
        self.vec_env.close()
