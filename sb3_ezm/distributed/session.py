"""Starting Ray on this machine or joining a cluster, and letting go of it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pathlib
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from sb3_ezm.errors import ConfigurationError

_STORE_BYTES = 256 * 2**20  # of the object store: weights, rounds, batches and pieces of a replay, never a whole one

_MISSING = (
    "Collectors, reanalyzers and replay shards, in processes of their own, need Ray: `pip install 'sb3-ezm[distributed]'`, or "
    "leave out what asks for them."
)

_users = 0
_is_own = False  # whether this package started or joined it
_is_local = False  # whether this package started it
_address: str | None = None  # of the cluster that this package joined


def check_installed() -> None:
    """
    Say early, and without importing it, that Ray will be needed.

    :raises ConfigurationError: if it is not installed
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(_MISSING)


def import_ray() -> ModuleType:
    """
    :return: Ray
    :raises ConfigurationError: if it is not installed
    """
    # Without it Ray on Linux listens on all interfaces even if it serves this machine alone; read once, at import.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(_MISSING) from error


def acquire(address: str | None) -> ModuleType:
    """
    Start Ray on this machine, or join a cluster; if this program has Ray already, use that.

    :param address: of a cluster, ``"auto"`` for the one that this machine belongs to; None starts Ray here
    :return: Ray
    :raises ConfigurationError: if it is not installed, there is no such cluster, the cluster does not let this machine in, or
        this program already uses another
    """
    global _users, _is_own, _is_local, _address
    if address is not None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # machines find each other by their addresses
    ray: Any = import_ray()
    if not ray.is_initialized():
        on_end = signal.getsignal(signal.SIGTERM)
        common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        if address is None:
            needed = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "_node_ip_address": "127.0.0.1"}
            with _surviving_hangups():
                # By default Ray's workers step back behind every other program (nice 15), but here the algorithm waits for
                # them. "local", or it would join what RAY_ADDRESS or an earlier `ray start` names.
                ray.init("local", **common, **needed, _system_config={"worker_niceness": 0})
            _hide_token()
            if not str(ray.util.get_node_ip_address()).startswith("127."):
                warnings.warn(
                    "Ray listens on all network interfaces, since this program imported it before the environments were made, "
                    "or tried to join a cluster: make the environments first, or set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in "
                    "the environment of the program.",
                    stacklevel=2,
                )
        else:
            try:
                ray.init(address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError) as error:  # nobody answers, or it is no address
                raise ConfigurationError(
                    f"There is no Ray cluster at `address` ({address!r}): start one with `ray start --head`, or leave it out."
                ) from error
            except (ray.exceptions.AuthenticationError, RuntimeError) as error:  # Ray wraps the one in the other at times
                if type(error) is RuntimeError and "AuthenticationError" not in str(error):
                    raise
                raise ConfigurationError(
                    f"The Ray cluster at `address` ({address!r}) asks for its token: copy ~/.ray/auth_token from its first "
                    "machine to the same place on every other, and set RAY_AUTH_MODE=token on all of them."
                ) from error
        _is_own, _is_local, _address = True, address is None, address
        _keep_status(on_end)
    elif _is_own and address not in (None, _address):
        used = "a Ray of its own" if _is_local else f"the Ray cluster at {_address!r}"
        raise ConfigurationError(
            f"`address` ({address!r}) cannot be joined while this program uses {used}: give everything the same address, or "
            "close what uses the other first."
        )
    _users += 1
    return ray  # type: ignore[no-any-return]


@contextlib.contextmanager
def _surviving_hangups() -> Iterator[None]:
    """
    Processes started within are deaf to SIGHUP. A terminal that is closed sends it to the whole group of this program, which
    can save the training only as long as Ray lives.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such signal
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hide_token() -> None:
    """Let nobody else on this machine read Ray's token, whose file Ray leaves readable to all."""
    token = pathlib.Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or pathlib.Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        if stat.S_IMODE(token.stat().st_mode) & 0o077:
            token.chmod(0o600)


def _keep_status(before: Any) -> None:
    """After SIGTERM Ray would end the program with the status 15. It is told to clean up, and the status is the usual one."""
    if before is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def reserved_cpus(wanted: int) -> int:
    """
    :param wanted: CPUs that a worker uses
    :return: those that it asks Ray for: none of a Ray that this package started, which would make it wait for a CPU of its own
        however many there are
    """
    return 0 if _is_local else wanted


def losses(ray: Any) -> tuple[type[Exception], ...]:
    """
    :param ray: Ray
    :return: what ``ray.get`` raises when a worker has died, or the machine that still held its answer. One that Ray kills
        since memory is short, and one whose machine is gone, are told by errors that are no ``RayActorError``
    """
    names = ("RayActorError", "ObjectLostError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError")
    return tuple(getattr(ray.exceptions, name) for name in names if hasattr(ray.exceptions, name))


def end_on_sigterm() -> None:
    """
    Let SIGTERM end this process, if it is an actor of Ray. Ray would raise ``SystemExit`` in the call that is running, which
    looks like an error of an environment there; a process that has ended is replaced.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def release() -> None:
    """Shut Ray down after the last user, if this package started or joined it."""
    global _users, _is_own, _is_local
    _users -= 1
    if _users == 0 and _is_own:
        _is_own = _is_local = False
        import_ray().shutdown()
