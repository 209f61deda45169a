"""
A trained agent learns one more task: the walker can stand and walk, and is to run.

    python examples/fine_tuning.py --steps 5000 --more-steps 4000  # 25 minutes of one core

The first agent learns to stand and to walk. Then the third task is added to it, starting from what it knows about walking,
and a second agent learns all three from scratch, for as many steps. Both are evaluated on the way, with the same episodes.
With this preset the first 1,000 decisions of each task come before the first update: shorter runs learn nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch as th

from sb3_ezm import EZM, add_tasks, make_multitask_env
from sb3_ezm.evaluation import evaluate_tasks

FIRST, ALL = ["walker-stand", "walker-walk"], ["walker-stand", "walker-walk", "walker-run"]


def main() -> None:
    """Train on two tasks, add the third, and compare with a new agent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="decisions of each of the first tasks (default 20000)")
    parser.add_argument("--more-steps", type=int, default=10_000, help="decisions of each of the three tasks (default 10000)")
    parser.add_argument("--eval-episodes", type=int, default=5, help="episodes of each task (default 5)")
    parser.add_argument("--evaluations", type=int, default=5, help="at the beginning, on the way and at the end (default 5)")
    parser.add_argument("--freeze-dynamics", action="store_true", help="leave representation and dynamics as they are")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"), help="folder of the models")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    args = parser.parse_args()
    th.set_num_threads(1)

    settings = {"seed": args.seed, "preset": "walker"}
    env = make_multitask_env(FIRST, seed=args.seed, action_repeat=2)
    model = EZM("MultiInputPolicy", env, **settings)
    model.learn(args.steps * len(FIRST))
    model.save(args.out / "stand_walk.zip")
    env.close()

    trained = EZM.load(args.out / "stand_walk.zip")
    frozen = {"policy_kwargs": {"freeze_dynamics": True}} if args.freeze_dynamics else {}
    env = make_multitask_env(ALL, seed=args.seed, action_repeat=2)
    agents = {
        "run added": add_tasks(trained, env, like="walker-walk", **frozen),
        "from scratch": EZM("MultiInputPolicy", env, **settings),
    }
    for name, agent in agents.items():
        print(f"{name}: environment steps of each task, mean returns of {args.eval_episodes} episodes")
        part = args.more_steps // max(1, args.evaluations - 1)
        for number in range(args.evaluations):
            if number > 0:
                agent.learn(part * len(ALL), reset_num_timesteps=False)
            returns = [task.mean_return for task in evaluate_tasks(agent, ALL, args.eval_episodes, seed=10_000)]
            columns = [f"{task} {mean:4.0f}" for task, mean in zip(ALL, returns, strict=True)]
            print(f"{number * part * 2:7,}  " + "   ".join(columns), flush=True)
        agent.save(args.out / f"{name.replace(' ', '_')}.zip")
    env.close()


if __name__ == "__main__":
    main()
