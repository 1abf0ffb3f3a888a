"""The clients, each run as a program of its own with a bound on its time, and the table of what came of it."""

import json
import os
import pathlib
import select
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path += [str(ROOT / "loadtest"), str(ROOT / "benches")]  # How `dev` is started, and child processes kept.

import processes  # noqa: E402

SECONDS_MAX = 90  # For one program.
PYTHON = ROOT / "target/venv/bin/python"
CURL = {"http/1.1": "--http1.1", "h2": "--http2"}
# As curl names them.
VERSIONS = {"http/1.1": "1.1", "h2": "2", "h3": "3"}


class Table:
    def __init__(self):
        self.verdicts: list[bool] = []

    def add(self, what: str, good: bool, figure: object) -> bool:
        self.verdicts.append(good)
        print(f"{'ok    ' if good else 'FAILED'}  {what:60}  {figure}", flush=True)
        return good

    def finish(self) -> int:
        failed = self.verdicts.count(False)
        print(f"\n{len(self.verdicts) - failed} passed, {failed} failed")
        return 1 if failed or not self.verdicts else 0


def bounded(command: list, scratch: pathlib.Path, name: str, **environment: str) -> tuple[int, str]:
    """Runs a program to its end, or ends it and all it started: exit code and output."""
    log = scratch / f"{name}.log"
    log.unlink(missing_ok=True)
    variables = (f"{key}={value}" for key, value in environment.items())
    child = processes.start(["env", *variables, *map(str, command)], log, cwd=scratch)
    try:
        code = child.wait(SECONDS_MAX)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        # A browser is in a process group of its own.
        family = processes.family(child.pid)
        processes.stop(child)
        for pid in family:
            end(pid)
    return code, log.read_text(errors="replace").strip()


def end(pid: int) -> None:
    """Only what this program started: a descendant that outlived its parent."""
    try:
        if pathlib.Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Answer:
    """`version`: of HTTP, as curl names it."""

    def __init__(self, status: int, version: str, fields: dict[str, str], content: str):
        self.status, self.version, self.fields, self.content = status, version, fields, content

    def json(self):
        try:
            return json.loads(self.content)
        except ValueError:
            return None


def curl(url: str, protocol: str, method: str = "GET", body: str | None = None, fields: dict | None = None) -> Answer:
    """Redirects are not followed. Status 0: there was no answer."""
    command = ["curl", "-sk", "-m", "40", CURL[protocol], "-i", "-w", "\n%{http_version}", "-X", method]
    for name, value in (fields or {}).items():
        command += ["-H", f"{name}: {value}"]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "--data", body]
    text = subprocess.run([*command, url], capture_output=True, timeout=SECONDS_MAX).stdout.decode(errors="replace")
    text, _, version = text.rpartition("\n")
    head, _, content = text.partition("\r\n\r\n")
    while head.split(" ", 2)[1:2] == ["100"]:
        head, _, content = content.partition("\r\n\r\n")
    lines = head.split("\r\n")
    if not lines[0].startswith("HTTP/"):
        return Answer(0, "", {}, "")
    told = (line.partition(":") for line in lines[1:])
    return Answer(int(lines[0].split()[1]), version, {name.lower(): value.strip() for name, _, value in told}, content)


class Http3:
    """aioquic with one connection to one node: `with Http3(base) as ask: ask("GET", path)`."""

    def __init__(self, base: str):
        self.command = [str(PYTHON), str(HERE / "aioquic_ask.py"), "--requests", base]

    def __enter__(self) -> "Http3":
        self.child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_) -> None:
        self.child.stdin.close()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()

    def ask(self, method: str, path: str, body: str | None, fields: dict) -> Answer:
        if body is not None:
            fields = fields | {"content-type": "application/json"}
        request = {"method": method, "path": path, "fields": fields, "content": body}
        try:
            print(json.dumps(request), file=self.child.stdin, flush=True)
            readable, _, _ = select.select([self.child.stdout], [], [], SECONDS_MAX)
            told = json.loads(self.child.stdout.readline()) if readable else None
        except (OSError, ValueError):
            told = None
        if not told:
            return Answer(0, "", {}, "")
        version = "3" if told["protocol"] == "h3" else told["protocol"]
        return Answer(told["status"], version, told["fields"], told["content"])
