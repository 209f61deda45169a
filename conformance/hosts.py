"""
Hosts on one machine: Linux namespaces with a network interface, a name, processes and temporary files of their own. Processor
and file system are shared. A switch between them has a port for each, and a relay that holds frames back.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("ip", "ss", "unshare", "nsenter", "setpriv")

_KINDS = ("--net", "--uts", "--mount", "--ipc", "--pid")
_BEGIN = "hostname {name} && mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo ready"
_OFFLOADS = (0x17, 0x1F, 0x24)  # SIOCETHTOOL: checksums, TSO and GSO of what is sent
_FRAME = 65_536  # bytes, at most


def missing() -> str:
    """
    :return: what hosts cannot be made without, or nothing
    """
    if sys.platform != "linux":
        return "Linux"
    if os.geteuid() != 0:
        return "root"
    return ", ".join(tool for tool in TOOLS if shutil.which(tool) is None)


class Host:
    """
    A host, until :meth:`end` or the end of this process.

    :param name: of the host
    """

    def __init__(self, name: str) -> None:
        self.name, self.address = name, ""
        # The first process of a host also buries orphans. It dies with this one, and everything in the host with it.
        script = f"{_BEGIN.format(name=name)} && while :; do sleep 1000 & wait $!; done"
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *_KINDS, "--fork", "--kill-child", "--mount-proc"]
        command += ["bash", "-c", script]
        self._first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} could not be made")
        self.process = children(self._first.pid)[0]

    def command(self, *arguments: str) -> list[str]:
        """
        :param arguments: a command
        :return: the command that runs it in the host
        """
        return ["nsenter", "-t", str(self.process), "-a", f"--wd={ROOT}", "--", *arguments]

    def run(self, *arguments: str) -> str:
        """
        :param arguments: a command
        :return: what it prints
        :raises RuntimeError: if it fails
        """
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def kill_processes(self) -> None:
        """Kill everything but the host itself, as a shortage of memory might."""
        self.run("bash", "-c", "kill -9 -1")

    def end(self) -> None:
        """End the host with everything in it."""
        self._first.kill()
        self._first.wait()


class Switch:
    """Connects hosts: 10.77.0.1, 10.77.0.2 and so on. It is a host itself, so that nothing is left in this one."""

    def __init__(self) -> None:
        self._host = Host("ezm-switch")
        self._relay: subprocess.Popen[str] | None = None
        self.hosts: list[Host] = []
        self._host.run("ip", "link", "add", "bridge", "type", "bridge")
        self._host.run("ip", "link", "set", "bridge", "up")

    def add(self, name: str) -> Host:
        """
        :param name: of a new host
        :return: the host, with an address
        """
        host = Host(name)
        self.hosts.append(host)
        host.address = f"10.77.0.{len(self.hosts)}"
        here, there = ("netns", str(self._host.process)), ("name", "eth0", "netns", str(host.process))
        subprocess.run(["ip", "link", "add", name, *here, "type", "veth", "peer", *there], check=True)
        self._host.run("ip", "link", "set", name, "master", "bridge")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        self.link(host, True)
        return host

    def link(self, host: Host, up: bool) -> None:
        """
        :param host: whose cable
        :param up: is plugged in, or pulled out
        """
        self._host.run("ip", "link", "set", host.name, "up" if up else "down")

    def delay(self, hosts: Sequence[Host], milliseconds: float) -> None:
        """
        Hold every frame between two hosts back for a while, in each direction.

        :param hosts: two
        :param milliseconds: how long; 0 for the switch alone
        """
        if self._relay is not None:
            for process in [*children(self._relay.pid), self._relay.pid]:
                os.kill(process, signal.SIGKILL)
            self._relay.wait()
            self._relay = None
        for host in hosts:
            attached = ["nomaster"] if milliseconds else ["master", "bridge"]
            self._host.run("ip", "link", "set", host.name, *attached)
            # A relay passes on whole frames only, of which the sender has computed the checksum.
            for process in (host, self._host):
                name = "eth0" if process is host else host.name
                process.run(sys.executable, "-m", "conformance.hosts", "--offloads", name, str(int(not milliseconds)))
        if milliseconds:
            names = [host.name for host in hosts]
            relay = self._host.command(sys.executable, "-m", "conformance.hosts", "--relay", *names, str(milliseconds))
            self._relay = subprocess.Popen(relay, text=True, stdout=subprocess.PIPE)
            assert self._relay.stdout is not None
            assert self._relay.stdout.readline() == "ready\n", "the relay does not run"

    def end(self) -> None:
        """End all hosts."""
        for host in [*self.hosts, self._host]:
            host.end()


def children(process: int) -> list[int]:
    """
    :param process: number of a process
    :return: numbers of its children
    """
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def set_offloads(interface: str, on: int) -> None:
    """
    :param interface: of this host
    :param on: whether it leaves work to hardware that a virtual one does not have
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for code in _OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", code, on), 8)
            with contextlib.suppress(OSError):  # those that follow from another one
                fcntl.ioctl(probe, 0x8946, struct.pack("16sP", interface.encode(), ctypes.addressof(value)))


def relay(interfaces: Sequence[str], seconds: float) -> None:
    """
    Pass frames on between two interfaces, for ever.

    :param interfaces: two
    :param seconds: by which each frame is held back
    """
    ends = []
    for interface in interfaces:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        end.setsockopt(socket.SOL_SOCKET, 33, 2**26)  # SO_RCVBUFFORCE
        end.bind((interface, 0))
        ends.append(end)
    waiting: deque[tuple[float, int, bytes]] = deque()
    print("ready", flush=True)
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select(ends, [], [], patience)
        for end in ready:
            frame, source = end.recvfrom(_FRAME)
            if source[2] != 4:  # PACKET_OUTGOING: what was sent from here
                waiting.append((time.monotonic() + seconds, 1 - ends.index(end), frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, number, frame = waiting.popleft()
            with contextlib.suppress(OSError):  # no cable
                ends[number].send(frame)


def main() -> None:
    """Do what :class:`Switch` needs done in a host."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--relay", nargs=3, metavar=("INTERFACE", "INTERFACE", "MILLISECONDS"))
    parser.add_argument("--offloads", nargs=2, metavar=("INTERFACE", "0|1"))
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if args.offloads:
        set_offloads(args.offloads[0], int(args.offloads[1]))
    if args.relay:
        relay(args.relay[:2], float(args.relay[2]) / 1000)


if __name__ == "__main__":
    main()
