"""Running a k6 script, and reading what it saw: the summary, and each request of the CSV stream."""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import time

import processes

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclasses.dataclass
class Request:
    name: str
    method: str
    status: int
    error: str
    start: float  # Seconds since the epoch, waiting for a connection included.
    end: float
    expected: bool
    connecting: float = 0.0  # Seconds; 0 on a connection that was used before.
    protocol: str = ""  # HTTP/1.1, HTTP/2.0; HTTP/3 of h3load.

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Run:
    """A script under way. `finish()` waits for its end and gives the Result."""

    def __init__(self, script: str, scratch: pathlib.Path, every_request: bool = False, godebug: str = "", **environment):
        label = f"{script}-{time.monotonic_ns()}"
        self.script, self.environment = script, environment
        self.summary, self.csv = scratch / f"{label}.json", scratch / f"{label}.csv" if every_request else None
        self.log = scratch / f"{label}.log"
        command = [str(program()), "run", "-q", "--no-usage-report", "--address", ""]
        if self.csv:
            command += ["--out", f"csv={self.csv}"]
        for name, value in {**environment, "SUMMARY": self.summary}.items():
            command += ["-e", f"{name}={value}"]
        command.append(str(HERE / f"{script}.js"))
        settings = {"K6_CSV_TIME_FORMAT": "unix_micro", "GODEBUG": godebug}
        self.child = processes.start(command, self.log, env={**os.environ, **settings})
        self.began = time.time()

    def finish(self, seconds_max: float) -> "Result":
        try:
            self.child.wait(seconds_max)
        except subprocess.TimeoutExpired:
            processes.stop(self.child)
            raise SystemExit(f"k6 {self.script} did not end within {seconds_max:.0f} s")
        processes.stop(self.child)
        if not self.summary.exists():
            raise SystemExit(f"k6 {self.script} failed:\n{self.log.read_text(errors='replace')[-3000:]}")
        requests = read_requests(self.csv) if self.csv else []
        if self.csv:
            self.csv.unlink()
        return Result(json.loads(self.summary.read_text())["metrics"], requests)


class Result:
    def __init__(self, metrics: dict, requests: list[Request]):
        self.metrics, self.requests = metrics, requests

    def value(self, metric: str, statistic: str, default: float = 0.0) -> float:
        """One number of the summary; `default` when nothing of the kind was seen."""
        found = self.metrics.get(metric, {}).get("values", {}).get(statistic)
        return default if found is None else found

    def of(self, name: str, metric: str, statistic: str) -> float:
        return self.value(f"{metric}{{name:{name}}}", statistic)

    def sent(self, name: str | None = None) -> int:
        return int(self.of(name, "http_reqs", "count") if name else self.value("http_reqs", "count"))

    def failed(self, name: str | None = None) -> int:
        # A k6 Rate counts as "passes" the samples that are true, here: failed.
        metric = f"http_req_failed{{name:{name}}}" if name else "http_req_failed"
        return int(self.value(metric, "passes"))


def program() -> pathlib.Path:
    found = ROOT / "target/venv/bin/k6"
    if not found.exists():
        raise SystemExit("k6 is missing: run `make setup-load`")
    return found


def read_requests(path: pathlib.Path) -> list[Request]:
    """k6 writes the metrics of one request as consecutive rows with one timestamp, that of its end."""
    found: list[Request] = []
    with open(path, newline="") as stream:
        for row in csv.DictReader(stream):
            if row["metric_name"] == "http_req_duration":
                end = float(row["timestamp"]) / 1e6
                found.append(
                    Request(
                        name=row["name"],
                        method=row["method"],
                        status=int(row["status"] or 0),
                        error=row["error"],
                        start=end - float(row["metric_value"]) / 1e3,
                        end=end,
                        expected=row["expected_response"] == "true",
                        protocol=row.get("proto", ""),
                    )
                )
            elif row["metric_name"] == "http_req_blocked" and found:
                found[-1].start -= float(row["metric_value"]) / 1e3
            elif row["metric_name"] == "http_req_connecting" and found:
                found[-1].connecting = float(row["metric_value"]) / 1e3
    return found


def good_per_second(requests: list[Request]) -> list[int]:
    """Good answers in each whole second, by when they came; the first and the last second are incomplete and left out."""
    if not requests:
        return []
    begin = min(one.start for one in requests)
    # After the last start only stragglers come: those seconds are no seconds of load.
    bins = [0] * (int(max(one.start for one in requests) - begin) + 1)
    for one in requests:
        place = int(one.end - begin)
        if one.expected and place < len(bins):
            bins[place] += 1
    return bins[1:-1]
