"""Child processes of benches and load tests: started in their own process group, ended by id, measured through /proc."""

import atexit
import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
_children: list[subprocess.Popen] = []


def start(command: list[str], log: pathlib.Path, **options) -> subprocess.Popen:
    """Starts a program whose output goes to `log`. It is ended when this program ends, even by SIGKILL."""
    with open(log, "ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, preexec_fn=_end_with_parent, **options
        )
    _children.append(child)
    return child


_libc = ctypes.CDLL(None)  # Loaded here, because a child between fork and exec had better not.
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(child: subprocess.Popen, grace: float = 5.0) -> None:
    """SIGTERM to the child, then SIGKILL to its group if it is still there after `grace` seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            pass
    try:
        # The group may outlive its leader (nginx workers); it holds only what we started.
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    if child in _children:
        _children.remove(child)


@atexit.register
def stop_all() -> None:
    for child in list(_children):
        stop(child)


def end_on_signals() -> None:
    """Turns SIGTERM and SIGHUP into an ordinary exit, so that `atexit` runs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: exit(128 + n))


def h3load() -> str:
    """Our HTTP/3 client, an example of the package."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    program = target / "release/examples/h3load"
    if not program.exists():
        raise SystemExit(f"{program} is missing: run `make h3load`")
    return str(program)


def free_port() -> int:
    """Free over TCP and UDP, as HTTPS and HTTP/3 want it."""
    while True:
        with socket.socket() as probe, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            probe.bind(("127.0.0.1", 0))
            try:
                other.bind(probe.getsockname())
            except OSError:
                continue
            return probe.getsockname()[1]


def wait_for_port(port: int, child: subprocess.Popen, log: pathlib.Path, seconds: float = 15.0) -> None:
    """Returns once something listens on `port`; an early exit of the child is an error that shows the log's end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise SystemExit(f"{child.args[0]} does not listen on port {port}:\n{tail}")


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        queue += parents.get(one, [])
    return found


def cpu_ns(pid: int) -> int:
    """CPU time of a process family in nanoseconds: user and system, all threads (the first field of schedstat)."""
    total = 0
    for one in family(pid):
        for task in pathlib.Path(f"/proc/{one}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue
    return total


def machine(load_before: tuple[float, float, float]) -> str:
    """What figures were measured on: the processor, its cores, and how busy it was (load average of one minute)."""
    found = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    model = found.group(1) if found else os.uname().machine
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores; load average {load_before[0]:.1f} before, {os.getloadavg()[0]:.1f} at the end"
