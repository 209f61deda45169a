"""The command line: every command with its options. Nothing here imports PyTorch, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sb3_ezm import kinds
from sb3_ezm.cli.parser import Parser
from sb3_ezm.kinds import Kind
from sb3_ezm.presets import preset_names
from sb3_ezm.seeds import EVALUATION_SEED, FRESH_SEED

PROTOCOLS = ("respected", "ignored", "both")
PROJECT = "sb3-ezm"  # of Weights & Biases, unless another is named
_MODEL = "a saved model (.zip, .agent), the folder of `ezm train`, or pretrained:NAME, see `ezm info`"
EXAMPLES = """\
examples:
  ezm train toy                                    the four toy tasks, minutes on one core
  ezm train walker --minutes 10                    stand, walk and run
  ezm train h1-medium --minutes 90                 nine humanoid tasks
  ezm train Pendulum-v1 MountainCarContinuous-v0   tasks of your own
  ezm resume runs/h1-medium                        continue where a training stopped
  ezm eval runs/toy --episodes 20 --json -         scores as JSON
  ezm film runs/toy --task toy-swingup
  ezm film pretrained:walker --task all            an agent that comes with the package
  ezm check-env my_package.envs:make_env
  ezm plot runs/toy

exit status: 0 success, 1 a check or something unexpected failed, 2 impossible arguments or files, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """
    :return: the parser of the whole command line; ``command`` of what it returns is the module that runs it
    """
    parser = Parser(
        prog="ezm",
        description="EfficientZero-Multitask for Stable-Baselines3.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = (Path(__file__).parent.parent / "version.txt").read_text(encoding="utf-8").strip()
    parser.add_argument("--version", action="version", version=f"sb3-ezm {version}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND")
    for add in (_add_train, _add_resume, _add_eval, _add_plot, _add_film, _add_export, _add_check_env, _add_info):
        add(commands)
    return parser


def option(kind: Kind) -> Callable[[str], Any]:
    """
    :param kind: of numbers
    :return: the type of an option that takes them, also as ``1e6`` and ``1_000_000``
    """

    def parse(text: str) -> Any:
        """The number in the text."""
        try:
            # Large integers would lose digits as floats.
            return kind.take(int(text) if text.lstrip("+-").replace("_", "").isdecimal() else float(text))
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f"must be {kind.allowed}, got {text!r}") from None

    return parse


def whole(least: int) -> Callable[[str], Any]:
    """
    :param least: smallest value
    :return: the type of an option that takes a whole number
    """
    return option(kinds.whole(least))


def copies(text: str) -> int | list[int]:
    """
    :param text: an integer, or several with commas between them
    :return: the integer, or the integers
    :raises argparse.ArgumentTypeError: for anything else
    """
    try:
        counts: list[int] = [whole(1)(count) for count in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; write one number, or one for each task with commas: 4,1,1") from None
    return counts[0] if len(counts) == 1 else counts


def _add_parser(
    commands: Any, name: str, module: str, summary: str, examples: str, aliases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        aliases=aliases,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(command=module)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help=_MODEL)
    parser.add_argument(
        "--tasks", nargs="+", action="extend", help="tasks, if those of the model cannot be found by their names"
    )
    parser.add_argument("--device", default="auto", help="PyTorch device (default auto)")
    parser.add_argument(
        "--search",
        nargs=2,
        type=whole(1),
        metavar=("CANDIDATES", "SIMULATIONS"),
        help="size of the searches that choose actions here; at least as many simulations as candidates (default: as saved)",
    )


def _add_train(commands: Any) -> None:
    examples = """\
  ezm train toy
  ezm train h1-medium --minutes 10 --film
  ezm train h1-walk h1-run --steps-per-task 100000 --out runs/gaits
  ezm train Pendulum-v1 --preset small --steps-per-task 3000 --seed 0 1 2
  ezm train toy --set learning_rate=3e-4 policy_kwargs.latent_size=96
  ezm train toy --overwrite
  ezm train walker --from runs/stand-walk --like walker-walk
"""
    parser = _add_parser(commands, "train", "train", "Train one agent on one or several tasks.", examples)
    add = parser.add_argument
    add("tasks", nargs="*", help="suites, tasks, Gymnasium ids, or module:name of your own")
    add("--preset", help=f"settings: {', '.join(preset_names())} (default: those of the suite, or small)")
    _add_set(parser, "arguments of EZM, replacing the preset's; `a.b=1` in dicts")
    add(
        "--envs-per-task",
        type=copies,
        metavar="N[,N...]",
        help="environments of each task, or a number for each task, in the tasks' order: more of them, more data (default 1)",
    )
    add("--action-repeat", type=whole(1), help="environment steps that each action lasts (default: the preset's, else 1)")
    add("--ignore-termination", action="store_true", help="falls do not end training episodes, as in the paper")
    add(
        "--seed",
        type=whole(0),
        nargs="+",
        action="extend",
        help="seed for everything (default 0); several are trained one after the other, in --out/seed-0 and so on",
    )
    add("--out", type=Path, help="folder for everything (default runs/<first task>)")
    add(
        "--from",
        dest="start",
        metavar="MODEL",
        type=Path,
        help=f"start from a trained agent, with its settings; tasks may be added. {_MODEL[0].upper()}{_MODEL[1:]}",
    )
    add("--like", metavar="TASK", help="trained task that the added ones start from (default: the mean of all)")
    add("--freeze-dynamics", action="store_true", help="leave representation and dynamics of the trained agent as they are")
    add(
        "--gradient-similarity",
        metavar="UPDATES",
        type=whole(1),
        help="compare the tasks' gradients every UPDATES updates, in gradients.jsonl (default: never)",
    )
    add("--resume", action="store_true", help="continue from the latest checkpoint in the folder --out, as `ezm resume` does")
    add("--overwrite", action="store_true", help="replace the run that the folder --out holds")
    parser.set_defaults(new_episodes=False)
    _add_training(parser, "default {}")


def _add_resume(commands: Any) -> None:
    examples = """\
  ezm resume runs/gaits
  ezm resume runs/gaits --steps-per-task 200000
  ezm resume runs/gaits --minutes 30
  ezm resume runs/gaits --set learning_rate=1e-4   from here on
  ezm resume runs/gaits --new-episodes             after an error that the running episodes led to
"""
    parser = _add_parser(commands, "resume", "train", "Continue a training from its latest checkpoint.", examples)
    parser.add_argument("out", metavar="folder", type=Path, help="folder of `ezm train`")
    parser.set_defaults(resume=True, overwrite=False, tasks=[], preset=None, envs_per_task=None, seed=None)
    parser.set_defaults(action_repeat=None, ignore_termination=False, start=None, like=None, freeze_dynamics=False)
    parser.set_defaults(gradient_similarity=None)
    _add_set(parser, "arguments of EZM that change from here on; `a.b=1` in dicts")
    parser.add_argument(
        "--new-episodes", action="store_true", help="start new episodes instead of continuing the running ones"
    )
    _add_training(parser, "default: as when the training began")


def _add_set(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=words)


def _add_training(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    steps = default.format("5000, without limit if --minutes is given")
    add("--steps-per-task", type=whole(1), help=f"steps of each task in total, a repeated action being one ({steps})")
    add(
        "--minutes",
        type=option(kinds.number(0.0, 1e6, above=True)),
        help=f"minutes to train from now on; the first and the last evaluation are extra ({default.format('no limit')})",
    )
    add(
        "--checkpoint-every",
        type=whole(0),
        help=f"steps per task between checkpoints, 0 for none except after an interrupt ({default.format('10000')})",
    )
    tenth = default.format("a tenth of the run")
    add("--eval-every", type=whole(0), help=f"steps per task between evaluations, 0 for one at the end ({tenth})")
    add("--eval-episodes", type=whole(1), help=f"episodes of each task in an evaluation ({default.format('3')})")
    protocol = default.format("as in training")
    add("--protocol", choices=PROTOCOLS, help=f"whether a termination ends an evaluated episode ({protocol})")
    limit = default.format("no limit")
    add(
        "--step-timeout",
        type=option(kinds.TIME_LIMIT),
        metavar="SECONDS",
        help=f"end with an error that names the task when a step or reset takes longer ({limit})",
    )
    here = default.format("0, all environments in this process")
    add("--collectors", type=whole(0), help=f"act in this many other processes, with Ray ({here})")
    ahead = default.format("0, 1 with --asynchronous")
    add("--rounds-ahead", type=whole(0), help=f"rounds collectors may be ahead of the learner, with older weights ({ahead})")
    add(
        "--asynchronous",
        action=argparse.BooleanOptionalAction,
        help="take the steps of collectors that are done, without waiting for slow ones; cannot be repeated exactly",
    )
    alone, here_too = default.format("1, this process"), default.format("0, this process")
    add("--learners", type=whole(1), help=f"share every update among this many processes, on GPUs one each ({alone})")
    add("--reanalyzers", type=whole(0), help=f"compute targets ahead in this many other processes, with Ray ({here_too})")
    add("--replay-shards", type=whole(0), help=f"hold the replay in this many other processes, with Ray ({here_too})")
    add(
        "--address",
        help="Ray cluster for all of these, `auto` for the one running on this machine (default: start Ray on this machine)",
    )
    add(
        "--film",
        nargs="*",
        action="extend",
        metavar="TASK",
        help="film these tasks at the end, or `all` (without a name: the best)",
    )
    add("--tensorboard", action=argparse.BooleanOptionalAction, help=f"write TensorBoard files ({default.format('yes')})")
    tracked = "log the run to Weights & Biases (pip install 'sb3-ezm[track]')"
    add("--track", action=argparse.BooleanOptionalAction, help=f"{tracked} ({default.format('no')})")
    add("--project", help=f"Weights & Biases project ({default.format(PROJECT)})")
    threads = default.format("1, the fastest for small networks")
    add("--threads", type=whole(1), help=f"PyTorch's threads ({threads})")
    add("--device", help=f"PyTorch device ({default.format('auto')})")


def _add_eval(commands: Any) -> None:
    examples = """\
  ezm eval runs/toy
  ezm eval runs/h1-medium --episodes 20 --protocol both
  ezm eval runs/h1-medium/best_model.zip --json scores.json
  ezm eval pretrained:walker
  ezm eval pretrained:walker --search 32 64
"""
    parser = _add_parser(commands, "eval", "evaluate", "Evaluate an agent on all its tasks.", examples)
    _add_model(parser)
    add = parser.add_argument
    add("--episodes", type=whole(1), default=10, help="episodes of each task (default 10)")
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="respected",
        help="whether a termination ends an episode (default respected; the paper's published scores ignore it)",
    )
    add("--stochastic", action="store_true", help="sample actions instead of taking the best")
    add("--max-steps", type=whole(1), help="cut episodes, for a quick look: returns are then not comparable")
    add(
        "--seed",
        type=whole(0),
        default=FRESH_SEED,
        help=f"of the episodes (default {FRESH_SEED}; those during training use {EVALUATION_SEED})",
    )
    add("--json", metavar="FILE", help="write all episodes as JSON, `-` for stdout (then without the table)")


def _add_plot(commands: Any) -> None:
    examples = """\
  ezm plot runs/toy                                the same as `ezm plot training runs/toy`
  ezm plot diagnostics runs/toy
  ezm plot curves --runs runs/h1-medium/evaluations.csv --suite medium --out curves.png
  ezm plot scores --runs runs/h1-medium/evaluations.csv --suite medium --out scores.png
"""
    parser = _add_parser(commands, "plot", "plot", "Draw learning curves.", examples)
    figures = parser.add_subparsers(metavar="FIGURE", dest="figure", required=True)
    for name, summary, picture in (
        ("training", "Draw the learning curves of a run, a panel for each task.", "curves.png"),
        ("diagnostics", "Draw what the learner of a run logged: values, errors, losses, search, speed.", "diagnostics.png"),
    ):
        figure = _add_parser(figures, name, "plot", summary, f"  ezm plot {name} runs/toy\n")
        figure.add_argument("folder", type=Path, help="folder of the run")
        figure.add_argument("-o", "--output", type=Path, help=f"picture: .png, .svg or .pdf (default {picture} in the folder)")
    for name, summary in (
        ("curves", "Draw learning curves of runs on those of EZ-M, multi-task and single-task."),
        ("scores", "Draw final scores of runs beside EZ-M, BRC, TD-MPC2, SimbaV2, BMPC and FastTD3."),
    ):
        line = f"  ezm plot {name} --runs runs/h1-medium/evaluations.csv --suite medium --out {name}.png\n"
        figure = _add_parser(figures, name, "plot", summary, line)
        figure.add_argument(
            "--runs",
            nargs="*",
            default=[],
            type=Path,
            help="evaluations.csv files or folders of `ezm train`, one per seed (default: published only)",
        )
        figure.add_argument("--suite", default="medium", help="medium or hard (default medium)")
        figure.add_argument("-o", "--out", required=True, type=Path, help="picture to write: .png, .svg or .pdf")
        if name == "curves":
            figure.add_argument(
                "--max-steps", type=whole(1), help="steps per task at which the panels end (default: where the runs end)"
            )


def _add_film(commands: Any) -> None:
    examples = """\
  ezm film pretrained:walker --task all
  ezm film runs/h1-medium --task h1-walk
  ezm film runs/toy --task all --output films
  ezm film runs/toy --task toy-spin --output spin.gif --max-steps 50
"""
    parser = _add_parser(commands, "film", "film", "Film an episode of an agent.", examples, aliases=("video",))
    _add_model(parser)
    add = parser.add_argument
    add("--task", nargs="+", action="extend", help="tasks to film, or `all` (default: the agent's first)")
    add(
        "-o",
        "--output",
        type=Path,
        help="file, .mp4 or .gif, for one task, or folder (default: `films` in the folder of the run)",
    )
    add("--seed", type=whole(0), default=EVALUATION_SEED, help=f"of the episode (default {EVALUATION_SEED})")
    add("--max-steps", type=whole(1), help="stop after this many steps, a repeated action being one")
    add("--frame-skip", type=whole(1), default=1, help="steps between two pictures (default 1)")
    add("--ignore-termination", action="store_true", help="let the episode run to its time limit")


def _add_export(commands: Any) -> None:
    examples = """\
  ezm export runs/toy --output policy.onnx
  ezm export runs/toy/best_model.zip --output policy.pt
  ezm export runs/toy --output toy.agent            the agent, for EZM.pretrained("toy.agent")
"""
    summary = "Write the policy head, without the search, as ONNX or TorchScript, or the whole agent as a small file."
    parser = _add_parser(commands, "export", "export", summary, examples)
    _add_model(parser)
    add = parser.add_argument
    formats = "policy head: .onnx, .pt (TorchScript) or .pt2 (torch.export); agent with rounded weights: .agent"
    add("-o", "--output", type=Path, required=True, help=f"file; {formats}, and a .json with its scores")
    add("--episodes", type=whole(1), help="of an .agent: evaluated episodes of each task (default 10)")
    add("--trained-by", metavar="COMMAND", help="of an .agent: for its card (default: as the folder of the run says)")
    add("--commit", help="of an .agent: version of the sources that trained it, for its card")


def _add_check_env(commands: Any) -> None:
    examples = """\
  ezm check-env Pendulum-v1
  ezm check-env h1-medium
  ezm check-env my_package.envs:make_env Pendulum-v1     both, as tasks of one agent
"""
    parser = _add_parser(commands, "check-env", "check_env", "Check that environments are fit for training.", examples)
    parser.add_argument(
        "tasks",
        nargs="+",
        help="suites, tasks, Gymnasium ids, or module:name of a function that returns an environment, a TaskSpec or TaskSet",
    )
    parser.add_argument("--steps", type=whole(1), default=300, help="random steps of each task (default 300)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the episodes and actions (default 0)")


def _add_info(commands: Any) -> None:
    examples = """\
  ezm info
  ezm info runs/toy
  ezm info runs/toy/best_model.zip
  ezm info pretrained:walker
"""
    summary = "Show versions, devices, suites and presets, or what a model file holds."
    parser = _add_parser(commands, "info", "info", summary, examples)
    parser.add_argument("model", type=Path, nargs="?", help=_MODEL)
