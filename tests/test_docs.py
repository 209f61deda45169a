"""
The pages are correct: their code runs, their commands exist, their links resolve, and their metrics are logged.

A page's Python blocks run in order, in one namespace and an empty folder. Fixtures shrink what would take minutes (few steps,
tiny networks), so that the pages can show what a reader should type. A block below the comment ``<!-- not run: reason -->`` is
only compiled.
"""

from __future__ import annotations

import configparser
import functools
import inspect
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stable_baselines3.common.evaluation
import torch as th

import sb3_ezm.evaluation
import sb3_ezm.video
from sb3_ezm import EZM, FullCheckpointCallback
from sb3_ezm.arguments.defaults import BY_PRESET, preset_settings
from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.cli.arguments import build_parser
from tests.tiny import TINY_NETWORKS, tiny_model, toy_env

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```(?P<language>\w[\w-]*)\n(?P<code>.*?)^```", re.M | re.S)
STEPS, RANDOM_STEPS = 40, 16


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """
    :param page: a Markdown file
    :param language: language of the fence
    :return: code, and the reason it is not run
    """
    matches = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [(match["code"], match["reason"]) for match in matches if match["language"] == language]


def name_of(page: Path) -> str:
    return page.name


# ------------------------------------------------------------------------------------------------------------ python code


def capped(function: Callable[..., Any], **caps: int) -> Callable[..., Any]:
    """
    :param function: a function with numeric arguments
    :param caps: upper bound of each argument, also used as its default
    :return: the same function with its arguments capped
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, cap in caps.items():
            given = bound.arguments.get(name)
            bound.arguments[name] = cap if given is None else min(given, cap)
        return function(*bound.args, **bound.kwargs)

    return call


def small_init(init: Callable[..., None]) -> Callable[..., None]:
    """
    :param init: constructor of EZM
    :return: the same with tiny networks, searches and batches, whatever the page asks for
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def call(*args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        if arguments.get("_init_setup_model", True):  # otherwise the settings come from a file
            arguments["policy_kwargs"] = {**(arguments.get("policy_kwargs") or {}), **TINY_NETWORKS}
            arguments.update(batch_size=18, num_simulations=2, num_candidates=2, learning_starts=RANDOM_STEPS)
        init(**arguments)

    return call


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[EZM]:
    """Make everything quick. The returned list collects the trained models."""
    trained: list[EZM] = []
    learn = capped(EZM.learn, total_timesteps=STEPS)

    def noted_learn(model: EZM, *args: Any, **kwargs: Any) -> EZM:
        trained.append(model)
        return learn(model, *args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(EZM, "learn", noted_learn)
    monkeypatch.setattr(EZM, "__init__", small_init(EZM.__init__))
    monkeypatch.setattr(TaskEvalCallback, "__init__", capped(TaskEvalCallback.__init__, eval_freq=20, n_eval_episodes=1))
    saving = capped(FullCheckpointCallback.__init__, save_freq=20)
    monkeypatch.setattr(FullCheckpointCallback, "__init__", saving)
    short_env = capped(sb3_ezm.make_multitask_env, max_episode_steps=4)
    for name, module in list(sys.modules.items()):
        if name.startswith("sb3_ezm.") and hasattr(module, "make_multitask_env"):  # used in evaluations
            monkeypatch.setattr(module, "make_multitask_env", short_env)
    monkeypatch.setattr(sb3_ezm.evaluation, "evaluate_tasks", capped(sb3_ezm.evaluation.evaluate_tasks, n_eval_episodes=2))
    monkeypatch.setattr(sb3_ezm.video, "record_video", capped(sb3_ezm.video.record_video, max_steps=3))
    evaluate_policy = stable_baselines3.common.evaluation.evaluate_policy
    short = capped(evaluate_policy, n_eval_episodes=1)
    for module in (stable_baselines3.common.evaluation, stable_baselines3.common.callbacks):
        monkeypatch.setattr(module, "evaluate_policy", short)
    return trained


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_code_runs(page: Path, small: list[EZM]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    threads = th.get_num_threads()
    learns = 0
    try:
        for number, (code, reason) in enumerate(blocks(page, "python"), start=1):
            compiled = compile(code, f"{page.name}, block {number}", "exec")
            if reason is not None:
                continue
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Path .* does not exist")
                exec(compiled, namespace)
            learns += code.count(".learn(")
    finally:
        th.set_num_threads(threads)
        for value in namespace.values():
            if hasattr(value, "close") and hasattr(value, "num_envs"):
                value.close()
    assert len(small) == learns, "a training of this page did not run"
    for model in small:
        assert model._n_updates > 0, f"{page.name}: a model was never updated"


def test_every_block_that_does_not_run_says_why() -> None:
    not_run = {page.name: [reason for _, reason in blocks(page, "python") if reason is not None] for page in PAGES}
    assert all(len(reason.split()) >= 3 for reasons in not_run.values() for reason in reasons)
    assert sum(map(len, not_run.values())) <= 6, f"too much code that nobody runs: {not_run}"


def test_capped_arguments() -> None:
    def function(steps: int, episodes: int | None = None) -> tuple[int, int | None]:
        return steps, episodes

    assert capped(function, steps=10, episodes=2)(1_000) == (10, 2)
    assert capped(function, steps=10, episodes=2)(5, episodes=1) == (5, 1)


# --------------------------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[str]:
    """
    :param page: a Markdown file
    :return: commands in its shell blocks, indented lines and inline code
    """
    text = page.read_text(encoding="utf-8")
    lines = [line for code, _ in blocks(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^    (\S.*)$", prose(page), re.M)
    lines += re.findall(r"`((?:python|make|pip|pytest) [^`]+)`", text)
    return [line.split("#")[0].strip() for line in lines]


def check_script(script: Path, options: list[str]) -> None:
    assert script.exists(), f"there is no {script.relative_to(ROOT)}"
    sources = [script.read_text(encoding="utf-8")]
    for name in re.findall(r"^(?:from|import) ((?:benchmarks|experiments|conformance)\.\w+|sb3_ezm[\w.]*)", sources[0], re.M):
        module = ROOT / f"{name.replace('.', '/')}.py"
        sources += [module.read_text(encoding="utf-8")] if module.exists() else []
    missing = [option for option in options if not any(f'"{option}"' in source for source in sources)]
    assert not missing, f"{script.relative_to(ROOT)} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for command in commands(page):
        options = re.findall(r"(?<=\s)--[a-z][\w-]*", command)
        script = re.match(r"python ((?:benchmarks|conformance|experiments|examples|docs)/\w+\.py)", command)
        module = re.match(r"python -m ((?:benchmarks|experiments|conformance)\.\w+|sb3_ezm\.\w+)", command)
        if script:
            check_script(ROOT / script[1], [option for option in options if option != "--help"])
        elif module:
            path = ROOT / module[1].replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), f"{page.name}: there is no {module[1]}"
        elif command.startswith("ezm "):
            build_parser().parse_args(shlex.split(command)[1:])
        elif command.startswith("make "):
            words = shlex.split(command)[1:]
            targets = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
            unknown = [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)]
            unknown += [word for word in words if "=" in word and f"{word.split('=')[0]} ?=" not in makefile]
            assert not unknown, f"{page.name}: the Makefile has no {unknown} ({command!r})"
        for named in re.findall(r"sb3-ezm\[([\w,]+)\]", command):
            assert set(named.split(",")) <= set(extras["options.extras_require"]), f"{page.name}: no extras {named}"
        for test in re.findall(r"tests/\w+\.py", command):
            assert (ROOT / test).exists(), f"{page.name}: there is no {test}"


# ------------------------------------------------------------------------------------------------------------------ links


def slug(heading: str) -> str:
    """
    :param heading: a heading in a Markdown file
    :return: its anchor on GitHub and in the built pages
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    ):
        plain, number = slug(heading), 0
        while (unique := plain if number == 0 else f"{plain}-{number}") in found:
            number += 1
        found.add(unique)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {target.name} has no heading #{anchor}"


def test_every_page_can_be_found() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(\w+)$", index, re.M))
    unlisted = [page.stem for page in DOCS if page.stem not in listed | {"index"}]
    assert not unlisted, f"Add {unlisted} to a toctree of docs/index.md."


def test_every_example_is_listed() -> None:
    text = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "examples").iterdir() if path.is_file() and f"examples/{path.name}" not in text]
    assert not missing, f"Add {missing} to docs/examples.md."


# ---------------------------------------------------------------------------------------------------------------- metrics

#: Logged only with certain settings: by losses that are off by default, and by Stable-Baselines3 under certain conditions.
CONDITIONAL = {"train/observation_loss", "train/policy_gradient_loss"}


def test_the_metrics_page_lists_what_is_logged() -> None:
    seen: set[str] = set()
    env = toy_env(max_episode_steps=5, action_repeat=2)
    losses = {"observation": 1.0, "policy_gradient": 1.0}
    for loss_kwargs in (None, losses):
        networks = {**TINY_NETWORKS, "decode_observations": loss_kwargs is not None, "head_norm": "layer"}
        model = tiny_model(env, loss_kwargs=loss_kwargs, policy_kwargs=networks)
        names = model.policy.task_set.names
        model.set_logger(sb3_ezm_logger(seen))
        model.learn(60, callback=TaskEvalCallback("toy", eval_freq=40, n_eval_episodes=1, max_episode_steps=5), log_interval=4)
        assert (seen & CONDITIONAL == CONDITIONAL) is (loss_kwargs is not None)
    general = {re.sub(r"^(eval\w*)/toy-\w+$", r"\1/<task>", key) for key in seen}
    general = {f"<task>/{key.split('/')[1]}" if key.split("/")[0] in names else key for key in general}
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w<>]+/[\w<>]+)` \|", text, re.M))
    assert documented == general, f"not documented: {general - documented}; not logged: {documented - general}"


def sb3_ezm_logger(seen: set[str]) -> Any:
    """
    :param seen: set that receives the keys
    :return: a Stable-Baselines3 logger that writes nothing
    """
    from stable_baselines3.common.logger import KVWriter, Logger

    class Keys(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            seen.update(key_values)

        def close(self) -> None:
            pass

    return Logger(folder=None, output_formats=[Keys()])


# --------------------------------------------------------------------------------------------------------------- notebook


def test_the_notebook_runs(small: list[EZM]) -> None:
    import json

    pytest.importorskip("ipykernel", reason="brings IPython: pip install sb3-ezm[docs]")
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), "strip the outputs"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        lines = "".join(cell["source"]).splitlines()
        code = "\n".join(line for line in lines if not line.startswith(("%", "!")))  # shell and magic commands of the notebook
        exec(compile(code, f"notebook.ipynb, cell {number}", "exec"), namespace)
    assert small and all(model._n_updates > 0 for model in small)


def test_the_table_of_defaults_is_what_will_be_used() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs" / "ezm.md").read_text(encoding="utf-8"), re.M)
    table = {name: cells for name, *cells in rows}
    decided = [name for name, each in inspect.signature(EZM).parameters.items() if each.default is BY_PRESET]
    assert list(table) == decided
    for column, preset in enumerate(("small", "h1-cpu", "paper")):
        settings = preset_settings(preset)
        for name in decided:
            value, shown = settings[name], table[name][column].replace(",", "")
            assert shown == str(value) or float(shown) == value, f"{name} of {preset}"
