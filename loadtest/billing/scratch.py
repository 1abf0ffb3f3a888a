"""The directory that everything of a drill lives in, users and ports for it, and its end: see keeper.py."""

import os
import pathlib
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Callable

import keeper
import processes

LOGS_BYTES_MAX = 4 << 20  # Of each log that is kept after a run that missed something.


class Scratch:
    def __init__(self, seed: int):
        self.random = random.Random(f"ports {seed} {os.getpid()}")
        self.ports: set[int] = set()
        self.user = unprivileged()

    def __enter__(self) -> "Scratch":
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="forefront-drill-")).resolve()
        self.directory.chmod(0o755)
        command = [sys.executable, keeper.__file__, str(self.directory)]
        # Not a child that `processes` ends: it ends after us, and only the pipe tells it to.
        self.keeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")
        return self

    def __exit__(self, *_) -> None:
        self.keeper.stdin.close()
        if self.keeper.wait(2 * keeper.END_SECONDS) != 0:
            raise SystemExit(f"something of {self.directory} is still running")

    def make(self, name: str) -> pathlib.Path:
        """A directory of the unprivileged user."""
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        if self.user:
            os.chown(directory, self.user.pw_uid, self.user.pw_gid)
        return directory

    def command(self, *words: object) -> list[str]:
        """As the unprivileged user, if this is root: PostgreSQL refuses to be root's. Ends with the drill, as `processes`
        wants it; a change of the user would forget that."""
        command = [str(word) for word in words]
        if not self.user:
            return command
        ids = [f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups", "--pdeathsig=TERM"]
        return ["setpriv", *ids, *command]

    def run(self, *words: object, cwd: pathlib.Path, seconds: float = 60) -> str:
        """To its end; what it printed. Ends the drill if it fails."""
        command = self.command(*words)
        try:
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"{' '.join(command)} took more than {seconds} s") from None
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def port(self) -> int:
        """Free, and below those that the system gives to clients: nobody takes it while its owner is dead."""
        first = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        low = 10000 if first > 12000 else 1024
        for _ in range(10000):
            port = self.random.randrange(low, first)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            if port not in self.ports:
                self.ports.add(port)
                return port
        raise SystemExit("no free port was found")

    def keep_logs(self, directory: pathlib.Path) -> None:
        """The ends of all logs, for whoever wants to know why."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for log in self.directory.rglob("*.log"):
            name = str(log.relative_to(self.directory)).replace("/", "-")
            with open(log, "rb") as source:
                source.seek(max(0, log.stat().st_size - LOGS_BYTES_MAX))
                (directory / name).write_bytes(source.read())


def unprivileged() -> pwd.struct_passwd | None:
    """None: whoever runs this will do."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise SystemExit("there is neither a user postgres nor a user nobody")


def wait_until(what: str, condition: Callable[[], bool], seconds: float, pause: float = 0.1) -> float:
    """How long it took. Ends the drill if it does not come about."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return time.monotonic() - began


def start(command: list[str], log: pathlib.Path, directory: pathlib.Path) -> subprocess.Popen:
    """From the main thread: a child ends with the thread that started it."""
    return processes.start(command, log, cwd=directory)
