"""The progress bar of ``learn(progress_bar=True)``, with the mean return of each task."""

from __future__ import annotations

import builtins
import textwrap
from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_ezm.tasks.statistics import TaskStatistics

LINE_WIDTH = 24  # what the bar leaves of a terminal with 80 columns
NOTEBOOK_SECONDS = 0.5  # between two pictures of a bar in a notebook, each of which goes through the browser


class TaskProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar plus the per-task returns of a model that has ``task_statistics``.

    In a notebook it is tqdm's plain bar: rich's needs ``ipywidgets`` there.
    """

    def _on_training_start(self) -> None:
        self._in_notebook = in_notebook()
        if self._in_notebook:
            from tqdm import tqdm  # installed, as rich is, wherever this bar is used

            steps = self.locals["total_timesteps"] - self.model.num_timesteps
            self.pbar = tqdm(total=steps, mininterval=NOTEBOOK_SECONDS, miniters=1)
        else:
            super()._on_training_start()
        self._shown_episodes = 0

    def _on_rollout_end(self) -> None:
        statistics = getattr(self.model, "task_statistics", None)
        if statistics is None or sum(statistics.episodes.values()) == self._shown_episodes:
            return
        self._shown_episodes = sum(statistics.episodes.values())
        phrases = describe_returns(statistics)
        if self._in_notebook:
            self.pbar.set_postfix_str(" ".join(phrases), refresh=False)
            return
        from rich.markup import escape

        # SB3's bar draws no postfix, only the description before it. Lines break only between tasks.
        text = " ".join(phrase.replace(" ", "\xa0") for phrase in phrases)
        lines = textwrap.wrap(text, LINE_WIDTH, break_on_hyphens=False, break_long_words=False)
        self.pbar.set_description_str(escape("\n".join(lines)) + " ", refresh=False)


def in_notebook() -> bool:
    """
    :return: whether what is printed appears in a notebook (Jupyter, Colab and the like)
    """
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return type(shell).__name__ not in ("NoneType", "TerminalInteractiveShell")


def describe_returns(statistics: TaskStatistics) -> list[str]:
    """
    Put the returns of the tasks into few words.

    :param statistics: finished episodes
    :return: a phrase for each task that has some, such as ``"stand 803"``; what all names have in common is left out
    """
    returns = {name: row["return"] for name, row in statistics.snapshot().items()}
    if len(statistics.task_names) == 1:
        return [f"return {value:.0f}" for value in returns.values()]
    shown = dict(zip(statistics.task_names, short_names(statistics.task_names), strict=True))
    return [f"{shown[name]} {value:.0f}" for name, value in returns.items()]


def short_names(names: Sequence[str]) -> list[str]:
    """
    :param names: of tasks
    :return: the names without the beginning that all of them share, up to a ``-`` or ``/``
    """
    first, last = min(names), max(names)
    common = next((i for i in range(len(first)) if first[i] != last[i]), len(first)) if first != last else 0
    start = max(first.rfind("-", 0, common), first.rfind("/", 0, common)) + 1
    return [name[start:] for name in names]


def clock(seconds: float) -> str:
    """
    :param seconds: a duration
    :return: for example ``"2:05"`` or ``"1:02:05"``
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def with_progress_bar(callback: MaybeCallback) -> CallbackList:
    """
    Add the progress bar to what the user passed to ``learn``.

    :param callback: one or several callbacks, a function, or None
    :return: all of them in one callback
    """
    if isinstance(callback, list):
        return CallbackList([*callback, TaskProgressBarCallback()])
    given = callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
    return CallbackList([given, TaskProgressBarCallback()])
