"""
A training that is interrupted, and continues as if it had not been.

    python examples/resume.py --steps 3000 --out runs/resume     # as often as you like; stop it with Ctrl-C in between
    python examples/resume.py --check                            # interrupt one training, compare it with another

The first call starts a training; later calls find its latest checkpoint and continue until ``--steps`` are done. A checkpoint
holds everything that the future depends on: networks, optimizer, replay, priorities, random generators and running episodes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm import EZM, FullCheckpointCallback, make_multitask_env


def make_env() -> VecEnv:
    """
    :return: the environment, made the same way for every part of a training
    """
    return make_multitask_env("toy", seed=0)


def start_or_resume(folder: Path, steps: int, save_freq: int) -> EZM:
    """
    :param folder: of the checkpoints
    :param steps: environment steps of the whole training
    :param save_freq: steps between two checkpoints
    :return: the trained model
    """
    callback = FullCheckpointCallback(save_freq, folder, keep_last=2, verbose=1)
    if any(folder.glob("*.ezm")):
        model = EZM.resume(folder, make_env())
        print(f"Resumed after {model.num_timesteps} steps and {model._n_updates} updates.")
        # Without reset_num_timesteps=False this would be a new training with the old weights.
        return model.learn(max(0, steps - model.num_timesteps), reset_num_timesteps=False, callback=callback)
    model = EZM("MultiInputPolicy", make_env(), seed=0, preset="toy")
    return model.learn(steps, callback=callback)


def check(steps: int) -> None:
    """
    Train once in one go and once in two parts, and compare all weights bit for bit.

    :param steps: environment steps
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = EZM("MultiInputPolicy", make_env(), seed=0, preset="toy")
        whole.learn(steps, callback=FullCheckpointCallback(steps // 2, folder))
        middle = min(Path(folder).glob("*.ezm"), key=lambda path: int(path.stem.split("_")[-1]))
        parts = EZM.resume(middle, make_env())
        print(f"{middle.name} holds {parts.num_timesteps} of {steps} steps.")
        parts.learn(parts.remaining_timesteps, reset_num_timesteps=False)
    first, second = whole.policy.state_dict(), parts.policy.state_dict()
    same = all(th.equal(first[name], second[name]) for name in first)
    verdict = "equal" if same else "DIFFERENT"
    print(f"The weights after {whole._n_updates} and {parts._n_updates} updates are {verdict}.")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000, help="environment steps of all tasks together (default 3000)")
    parser.add_argument("--save-freq", type=int, default=500, help="steps between two checkpoints (default 500)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/resume"), help="folder of the checkpoints (default runs/resume)"
    )
    parser.add_argument("--check", action="store_true", help="compare an interrupted training with an uninterrupted one")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.check:
        check(args.steps)
    else:
        model = start_or_resume(args.out, args.steps, args.save_freq)
        print(f"Done: {model.num_timesteps} steps, {model._n_updates} updates.")


if __name__ == "__main__":
    main()
