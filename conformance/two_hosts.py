"""
Train on several hosts, with faults, and compare with one host: ``python -m conformance.two_hosts``. Needs Linux, root,
iproute2 and Ray (the extra ``distributed``).

Hosts are namespaces of this machine (:mod:`conformance.hosts`), with a network, name, processes and temporary files of their
own. The first one is the head of a Ray cluster, with a token, and has the learner; the second has room for what does not fit
there, a third joins where one is to be lost. Everything ends with this program.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.hosts import ROOT, Host, Switch, children, missing

MODULE = "conformance.two_hosts_training"
PORT = 6379
STORE = 200_000_000  # bytes of an object store
ALL = ("--shards", "1", "--reanalyzers", "1")
MANY = ("--copies", "40", "--steps", "16000", "--reanalyzers", "1")  # states of a collector that Ray leaves where they are

_KNOCK = """
import socket, sys
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 1.0)
        print(port)
    except OSError:
        pass
"""


class Training:
    """
    A training that runs in a host.

    :param host: where
    :param arguments: of :mod:`conformance.two_hosts_training`
    """

    def __init__(self, host: Host, *arguments: str) -> None:
        self.host, self.warnings, self.pause, self.places = host, list[str](), 0.0, dict[str, list[str]]()
        command = host.command(sys.executable, "-m", MODULE, *arguments)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """
        :param wanted: whether this is the line
        :return: the next such line, or the one that says how the training ended
        :raises RuntimeError: if it ends without a word
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.startswith("{"):
                continue
            said: dict[str, Any] = json.loads(line)
            self.pause = max(self.pause, said.get("pause", 0.0))
            self.places = said.get("places", self.places)
            if said["event"] == "warning":
                self.warnings.append(said["text"])
            if wanted(said) or said["event"] in ("done", "error", "measured"):
                return said
        raise RuntimeError(f"{self.host.name}: the training ended without a word ({self.process.wait()})")

    def step(self, step: int) -> None:
        """
        :param step: to wait for
        """
        said = self.until(lambda line: line["event"] == "step" and line["step"] >= step)
        if said["event"] != "step":
            raise RuntimeError(f"{self.host.name}: the training ended early: {said}")
        self.pause = 0.0

    def result(self) -> dict[str, Any]:
        """
        :return: how it ended
        """
        said = self.until(lambda _: False)
        self.process.communicate()
        return said

    def tell(self, line: str) -> None:
        """
        :param line: for its standard input
        """
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Kill the learner."""
        os.kill(children(self.process.pid)[0], signal.SIGKILL)
        self.process.wait()


class Checks:
    """The hosts, and what is found on them."""

    def __init__(self) -> None:
        self.failures = 0
        self.switch = Switch()
        self.head, self.second, self.third, self.alone = (
            self.switch.add(f"ezm-{name}") for name in ("head", "second", "third", "alone")
        )
        self._expected: dict[str, dict[str, Any]] = {}
        self._ray = str(Path(sys.executable).with_name("ray"))

    def row(self, what: str, found: str, is_right: bool) -> None:
        """
        :param what: was checked
        :param found: figures
        :param is_right: whether it is as the documentation says
        """
        self.failures += not is_right
        print(f"{what:34} {'ok' if is_right else 'WRONG':6} {found}", flush=True)

    def begin(self, host: Host, cpus: int) -> None:
        """
        Start Ray as docs/distributed.md says.

        :param host: the head, or one that joins
        :param cpus: it has room for so many actors
        """
        own = f"--node-ip-address={host.address}"
        joins = [f"--address={self.head.address}:{PORT}"]
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host is self.head else joins
        limits = [f"--num-cpus={cpus}", f"--object-store-memory={STORE}", "--disable-usage-stats"]
        host.run(self._ray, "start", *where, own, *limits)

    def train(self, *arguments: str, host: Host | None = None) -> Training:
        """
        :param arguments: of the training, in the cluster
        :param host: another than the head, by itself
        :return: the training
        """
        return Training(host or self.head, "train", *(() if host else ("--address", "auto")), *arguments)

    def expected(self, *arguments: str) -> dict[str, Any]:
        """
        :param arguments: of a training
        :return: its result on one host, without shards
        """
        key = " ".join(arguments)
        if key not in self._expected:
            self._expected[key] = self.train(*arguments, host=self.alone).result()
        return self._expected[key]

    def is_same(self, result: dict[str, Any], *arguments: str) -> bool:
        """
        :param result: of a training
        :param arguments: of the one on a single host
        :return: whether weights and replay are the same bit for bit
        """
        expected = self.expected(*arguments)
        return "weights" in expected and all(result.get(key) == expected[key] for key in ("weights", "replay"))

    # --------------------------------------------------------------------------------------------------- without faults

    def loopback(self) -> None:
        """Nobody else can talk to the Ray of a training on one host."""
        training = self.train("--reanalyzers", "1", host=self.alone)
        training.step(100)
        listening = [line.split()[3] for line in self.alone.run("ss", "-ltnH").splitlines()]
        ports = [address.rpartition(":")[2] for address in listening]
        inside = [address for address in listening if re.fullmatch(r"\[?(::ffff:)?127\.0\.0\.1]?:\d+", address)]
        heard = self.head.run(sys.executable, "-c", _KNOCK, self.alone.address, *ports).split()
        self._expected["--reanalyzers 1"] = training.result()
        found = f"{len(listening)} ports, {len(inside)} of them on 127.0.0.1; {len(heard)} answer another host"
        self.row("Ray on one host", found, len(inside) == len(listening) > 0 and not heard)

    def placement(self) -> None:
        """A training on two hosts is the same as on one."""
        training = self.train(*ALL)
        result = training.result()
        names = {host.address: host.name.removeprefix("ezm-") for host in self.switch.hosts}
        kinds = training.places.items()
        where = "; ".join(f"{kind}s on {', '.join(names[place] for place in places)}" for kind, places in kinds)
        self.row("actors of two hosts", where, all(self.second.address in places for _, places in kinds))
        steps = 384 / result.get("seconds", 1e9)
        alone = 384 / self.expected("--reanalyzers", "1").get("seconds", 1e9)
        found = f"weights and replay of 400 steps; {steps:.0f} steps/s, on one host {alone:.0f}"
        self.row("two hosts, shards = one host", found, self.is_same(result, "--reanalyzers", "1"))

    def wire(self) -> None:
        """Count bytes at the head's interface."""
        said = Training(self.head, "measure", "--address", "auto", "--collectors", "4").result()
        if said["event"] != "measured":
            self.row("bytes", str(said), False)
            return
        far = sum(place != self.head.address for place in said["places"]["collector"])
        random, learning = said["random"], said["learning"]
        steps = random["bytes"] - said["idle"] * random["seconds"]
        more = learning["bytes"] - learning["steps"] / random["steps"] * steps - said["idle"] * learning["seconds"]
        each = more / max(1, learning["versions"])
        self.row("bytes of an env step", f"{steps / random['steps'] / far:.0f}; {said['idle']:,} a second at rest", True)
        found = f"{each:,.0f} bytes on the wire, {said['weights']:,} in all; {far} collectors on the second host"
        self.row("a version of the weights", found, far > 1 and each < 1.5 * said["weights"])

    def pace(self) -> None:
        """Measure steps per second with and without a slow network."""
        training = Training(self.head, "pace", "--address", "auto", "--steps", "320")
        ends = [self.head, self.second]
        for name in ("lockstep", "one round ahead"):
            training.until(lambda line: line["event"] == "ready")
            rates = []
            for delay in (0.0, 5.0, 20.0):
                self.switch.delay(ends, delay)
                training.tell("go")
                rates.append(float(training.until(lambda line: line["event"] == "rate").get("rate", 0.0)))
            self.switch.delay(ends, 0.0)
            training.tell("next")
            found = ", ".join(f"{rate:.0f}" for rate in rates)
            self.row(f"env steps/s, {name}", f"{found} with 0, 5, 20 ms each way", min(rates) > 0)
        training.process.communicate()

    # ----------------------------------------------------------------------------------------------------------- faults

    def blip(self) -> None:
        """The network is down for three seconds."""
        training = self.train(*ALL)
        training.step(160)
        self.switch.link(self.second, False)
        time.sleep(3.0)
        self.switch.link(self.second, True)
        result = training.result()
        found = f"longest pause {training.pause:.0f} s; restarts {result.get('restarts', result)}"
        self.row("network down for 3 s", found, self.is_same(result, "--reanalyzers", "1"))

    def learner(self) -> None:
        """The learner is killed, and another resumes."""
        folder = f"/tmp/{secrets.token_hex(4)}"
        training = self.train(*ALL, "--folder", folder)
        training.step(200)
        training.kill()
        result = self.train(*ALL, "--folder", folder).result()
        found = f"resumed at step {result.get('first')}: {result['event']}"
        self.row("learner killed, resumed", found, result.get("first", 0) > 0 and self.is_same(result, "--reanalyzers", "1"))

    def processes(self) -> None:
        """All processes of a host are killed while there is room elsewhere."""
        self.begin(self.third, 5)
        training = self.train(*MANY)
        training.step(8000)
        lost = self._busy(training)
        lost.kill_processes()
        result = training.result()
        found = f"pause {training.pause:.0f} s; restarts {result.get('restarts', result)}"
        self.row("processes of a host killed", found, self.is_same(result, *MANY) and result["restarts"]["collector"] > 0)
        self.begin(lost, 5)

    def cut(self) -> None:
        """The network of a host with shards goes down for good while there is room elsewhere."""
        training = self.train(*ALL, "--folder", f"/tmp/{secrets.token_hex(4)}")
        training.step(200)
        lost = self._busy(training)
        self.switch.link(lost, False)
        result = training.result()
        restored = [text for text in training.warnings if "were restored from the checkpoint" in text]
        found = f"pause {training.pause:.0f} s; restarts {result.get('restarts', result)}; {len(restored)} shards restored"
        self.row("network down for good", found, result["event"] == "done" and len(restored) > 0)
        lost.kill_processes()
        self.switch.link(lost, True)

    def room(self) -> None:
        """The network of a host goes down for good, and there is no room for its collectors."""
        training = self.train("--collectors", "3", "--limit", "150")
        training.step(100)
        lost, since = self._busy(training), time.monotonic()
        self.switch.link(lost, False)
        result = training.result()
        found = f"after {time.monotonic() - since:.0f} s {result.get('kind', result)}: {result.get('text')}"
        self.row("no room for what is lost", found, "a cluster has no room" in result.get("text", ""))

    def _busy(self, training: Training) -> Host:
        """The host with the most actors, but for the head."""
        everywhere = [place for places in training.places.values() for place in places]
        return max(self.switch.hosts[1:3], key=lambda host: everywhere.count(host.address))


CHECKS = ("loopback", "placement", "wire", "pace", "blip", "learner", "processes", "cut", "room")


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS, help="in this order; `room` is the last one")
    args = parser.parse_args()
    lacking = missing() or ("" if importlib.util.find_spec("ray") else "Ray: pip install 'sb3-ezm[distributed]'")
    if lacking:
        raise SystemExit(f"two_hosts needs {lacking}")
    # Hosts share the home folder, where Ray would keep its token.
    os.environ.update(HOME="/tmp", PYTHONPATH=str(ROOT), RAY_worker_niceness="0")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    checks = Checks()
    try:
        if set(args.only) != {"loopback"}:
            checks.begin(checks.head, 2)
            checks.begin(checks.second, 5)
        for name in args.only:
            getattr(checks, name)()
    finally:
        checks.switch.end()
    raise SystemExit(checks.failures > 0)


if __name__ == "__main__":
    main()
