"""The progress bar of ``learn(progress_bar=True)``, with the mean return of each task behind it."""

from __future__ import annotations

from stable_baselines3.common.callbacks import ProgressBarCallback


class TaskProgressBarCallback(ProgressBarCallback):
    """SB3's progress bar plus the per-task returns of a model that has ``task_statistics``."""

    def _on_rollout_end(self) -> None:
        statistics = getattr(self.model, "task_statistics", None)
        if statistics is None:
            return
        returns = {name: f"{row['return']:.0f}" for name, row in statistics.snapshot().items()}
        if returns != getattr(self, "_shown", None):
            self._shown = returns
            self.pbar.set_postfix(returns, refresh=False)
