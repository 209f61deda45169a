"""Training that is asked to stop saves a checkpoint first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_ezm import EZM, FullCheckpointCallback
from sb3_ezm.checkpoint import latest_checkpoint
from sb3_ezm.checkpoint.signals import StopSignals
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


@pytest.fixture(autouse=True)
def handled_as_in_a_shell() -> Iterator[None]:
    """Undo ignored signals that the tests may have inherited from whatever started them, such as `nohup`."""
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send(number: int, steps: int) -> Any:
    """
    :param number: signal number
    :param steps: number of steps after which this process gets it
    :return: callback
    """

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == steps:
            os.kill(os.getpid(), number)
        return True

    return callback


def with_saves(folder: Path, callback: Any) -> Any:
    """
    :param folder: folder of the checkpoints
    :param callback: a function
    :return: callbacks
    """
    return [FullCheckpointCallback(1000, folder), ConvertCallback(callback)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_training_is_saved_between_two_steps_and_can_resume(tmp_path: Path, number: signal.Signals) -> None:
    def make() -> Any:
        return toy_env(["toy-spin"], max_episode_steps=7)

    whole = tiny_model(make()).learn(30)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        tiny_model(make()).learn(30, callback=with_saves(tmp_path, send(number, 17)))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert latest_checkpoint(tmp_path).name == "checkpoint_17.ezm"
    model = EZM.resume(tmp_path, make())
    model.learn(model.remaining_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(model))


@pytest.mark.parametrize("frequency", [1, 4])
def test_an_interrupt_waits_for_the_end_of_a_step(tmp_path: Path, frequency: int, capfd: pytest.CaptureFixture[str]) -> None:
    def make() -> Any:
        return toy_env(["toy-spin"], max_episode_steps=7)

    whole = tiny_model(make(), train_freq=frequency).learn(32)
    before, sent = signal.getsignal(signal.SIGINT), send(signal.SIGINT, 17)
    with pytest.raises(KeyboardInterrupt):
        tiny_model(make(), train_freq=frequency).learn(32, callback=with_saves(tmp_path, sent))
    assert signal.getsignal(signal.SIGINT) is before
    assert "the training ends after this step" in capfd.readouterr().err
    last = {1: 17, 4: 18}[frequency]  # a rollout of several steps ends after the next one
    assert latest_checkpoint(tmp_path).name == f"checkpoint_{last}.ezm"
    model = EZM.resume(tmp_path, make())
    model.learn(model.remaining_timesteps, reset_num_timesteps=False)
    if frequency == 1:  # a rollout that was cut short is another one
        assert_same_weights(weights_of(whole), weights_of(model))


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    model = tiny_model(toy_env(["toy-spin"]))

    def twice(local: dict[str, Any], _: dict[str, Any]) -> bool:
        signal.raise_signal(signal.SIGINT)
        assert model.stop_signals.requested == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(9, callback=with_saves(tmp_path, twice))
    assert model.num_timesteps == 1 and not list(tmp_path.iterdir())


def test_long_rollouts_are_cut_short(tmp_path: Path) -> None:
    model = tiny_model(toy_env(["toy-spin"], max_episode_steps=50), train_freq=(1, "episode"))
    with pytest.raises(SystemExit):
        model.learn(200, callback=with_saves(tmp_path, send(signal.SIGTERM, 17)))
    assert model.num_timesteps < 20 and latest_checkpoint(tmp_path).stem == f"checkpoint_{model.num_timesteps}"


def test_an_error_caused_by_the_signal_does_not_prevent_saving(tmp_path: Path) -> None:
    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 17:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("a worker got the signal as well")
        return True

    with pytest.raises(SystemExit) as stopped:
        tiny_model(toy_env(["toy-spin"])).learn(30, callback=with_saves(tmp_path, callback))
    assert stopped.value.code == 143 and isinstance(stopped.value.__context__, RuntimeError)
    assert latest_checkpoint(tmp_path).name == "checkpoint_17.ezm"


def test_the_programs_own_handler_takes_precedence(tmp_path: Path) -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        model = tiny_model(toy_env(["toy-spin"]))
        model.learn(20, callback=with_saves(tmp_path, send(signal.SIGTERM, 17)))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [signal.SIGTERM] and model.num_timesteps == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_17.ezm", "checkpoint_20.ezm"]


def test_without_the_callback_signals_are_not_deferred() -> None:
    model = tiny_model(toy_env(["toy-spin"]))
    handlers: list[Any] = []
    model.learn(2, callback=lambda local, _: handlers.append(signal.getsignal(signal.SIGTERM)) or True)
    assert handlers == [signal.getsignal(signal.SIGTERM)] * 2


def test_a_second_signal_takes_effect_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, killed = StopSignals(), []
    before = signal.getsignal(signal.SIGTERM)
    stop.watch()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        monkeypatch.setattr(signal, "raise_signal", lambda number: killed.append((number, signal.getsignal(number))))
        stop._handle(signal.SIGTERM, None)
        assert killed == [(signal.SIGTERM, before)]
    finally:
        stop.release()


def test_ignored_signals_stay_ignored_and_threads_install_no_handlers() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    stop = StopSignals()
    try:
        stop.watch()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        stop.release()
        signal.signal(signal.SIGHUP, previous)
    other = StopSignals()
    thread = threading.Thread(target=other.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and other.requested is None
