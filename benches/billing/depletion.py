"""From the instant at which an account has no money left to the arrival of its order, by the machine's one clock."""

import math
import os
import pathlib
import time

import processes
import servers

# Accounts that will run dry have ids from here on.
FIRST = 100_000_000
# Micro-units a second, so that a micro-unit lasts a microsecond.
VELOCITY = 1_000_000
# Between their creation and the first instant: to learn the instants, and for the load to be under way.
LEAD = 4.0
# For orders after the last instant.
PATIENCE = 5.0
# The disk is at rest when fewer bytes are written in half a second; how long that is waited for.
AT_REST_BYTES = 1 << 20
RESTS_WITHIN = 60.0
EXPIRATIOND_TUPLES = 1024


class Receiver:
    """Says when each order came."""

    def __init__(self, client: servers.Client, scratch: pathlib.Path):
        self.port, self.log = processes.free_port(), scratch / "orders"
        self.child = processes.start([client.program, "receive", f"127.0.0.1:{self.port}"], self.log)
        processes.wait_for_port(self.port, self.child, self.log)
        self.webhook = f"http://127.0.0.1:{self.port}/off?userID="
        self.position = 0
        self.arrivals: dict[int, list[int]] = {}

    def read(self) -> dict[int, list[int]]:
        """All arrivals so far, by account, in microseconds."""
        with open(self.log, "rb") as file:
            file.seek(self.position)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self.position += whole
        for line in text[:whole].splitlines():
            account, at = line.split()
            self.arrivals.setdefault(int(account), []).append(int(at))
        return self.arrivals


def rest(disk: str) -> None:
    """Until nothing is left to be written of what was done before, by this system and by those that run beside it."""
    os.sync()
    deadline, last = time.monotonic() + RESTS_WITHIN, written(disk)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = written(disk)
        if now - last < AT_REST_BYTES:
            return
        last = now


def written(disk: str) -> int:
    """Bytes since the machine's start."""
    fields = pathlib.Path("/proc/diskstats").read_text().splitlines()
    return sum(int(line.split()[9]) * 512 for line in fields if " ".join(line.split()[:2]) == disk)


def disk_of(directory: pathlib.Path) -> str:
    device = os.stat(directory).st_dev
    return f"{os.major(device)} {os.minor(device)}"


class Cells:
    def __init__(self, receiver: Receiver, probes: int, spread: float, scratch: pathlib.Path):
        self.receiver, self.probes, self.spread, self.disk = receiver, probes, spread, disk_of(scratch)
        self.next = FIRST

    def measure(self, server: servers.Server, rate: float | None, spread: float, patience: float) -> dict:
        """`rate`: operations a second on the other accounts meanwhile; None: idle."""
        rest(self.disk)
        first, step = self.next, round(spread * 1e6 / self.probes)
        self.next += self.probes
        began = time.time()
        server.create(first, self.probes, round(LEAD * 1e6), VELOCITY, step)
        instants = server.instants(first, self.probes)
        if len(instants) != self.probes or time.time() > began + LEAD - 1:
            raise SystemExit(f"{server.name}: {len(instants)} of {self.probes} instants are known in time")
        last = max(instants.values()) / 1e6
        commits, load, operations = server.commits(), None, None
        if rate:
            seconds = last - time.time() + 0.5
            load = server.client.start(*server.load_arguments(seconds, 4096, "--rate", rate, "--warm-up-seconds", 1))
        missing = self.wait(instants, last + patience)
        if load:
            operations = server.client.finish(load)
            server.settle()
        figures = self.judge(instants, missing)
        if commits:
            figures["commit_p99_ms"] = commit_p99_ms(commits, server.commits())
        if operations:
            figures["load"] = {"rate": rate, "p50_ms": operations["p50_ms"], "p99_ms": operations["p99_ms"]}
        server.forget(first, self.probes)
        return figures

    def wait(self, instants: dict[int, float], deadline: float) -> int:
        while True:
            arrivals = self.receiver.read()
            missing = sum(account not in arrivals for account in instants)
            if not missing or time.time() > deadline:
                return missing
            # Reading is not to disturb what is measured.
            time.sleep(0.5)

    def judge(self, instants: dict[int, float], missing: int) -> dict:
        arrivals = self.receiver.arrivals
        came = [account for account in instants if account in arrivals]
        delays = sorted((arrivals[account][0] - instants[account]) / 1000 for account in came)
        # What never came is later than all that did.
        delays += [math.inf] * missing
        at = lambda part: delays[math.ceil(len(delays) * part) - 1]
        return {
            "orders": len(delays),
            "missing": missing,
            "early": sum(delay < 0 for delay in delays),
            "repeated": sum(len(arrivals[account]) > 1 for account in came),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "max_ms": delays[-1],
        }


def commit_p99_ms(before: dict[float, int], after: dict[float, int]) -> float:
    """Within its bucket by interpolation."""
    counts = {bound: after[bound] - before[bound] for bound in sorted(after)}
    rank, low, below = max(counts.values()) * 0.99, 0.0, 0
    for bound, count in counts.items():
        if count >= rank and count > below:
            return 1000 * (low + (bound - low) * (rank - below) / (count - below)) if math.isfinite(bound) else math.inf
        low, below = bound, count
    return 0.0


def expirationd_pass(accounts: int) -> float:
    """Seconds for one look at every account with the defaults of expirationd: 1024 of them, then a sleep."""
    return accounts / EXPIRATIOND_TUPLES * min(1, EXPIRATIOND_TUPLES * 3600 / accounts) + 1
