"""What users notice while something dies, hangs, falls sick or is drained, at 120 requests/s of the mix."""

import collections
import dataclasses
import os
import pathlib
import re
import signal
import time
from typing import Callable

import k6
from balancer import Balancer
from fleet import Fleet, Legacy, Node, fetch, is_running, origin_counts, process_state, reachable, status
from report import Report

RATE = 120
LEAD_SECONDS = 10  # Load before the fault.
SLACK_SECONDS = 0.05
BACK_SECONDS_MAX = 60
LISTS = ("movie_list", "customer_list", "session_list", "session_post", "session_delete")  # No time limit is set for these.


@dataclasses.dataclass
class Fault:
    name: str
    inject: Callable[[], float]
    """Does the harm, ends the program unless it can be seen to have happened, and returns the instant of it."""
    back: Callable[[], bool]
    """Whether the victim serves again."""
    notice_seconds: float
    """How long the front may take to notice. A POST begun before that may be lost: none may be sent twice. From then
    on nothing may fail."""
    in_flight: Callable[[], int] | None = None
    """Requests that the victim had under way when it was harmed, if it can tell."""


def expect(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"the fault did not happen: {what}")
        time.sleep(0.01)


class LegacyFaults:
    """Faults of one of the two legacy processes."""

    # Health checks each 1 s with a limit of 500 ms, two failures: 0.5 + 1 + 0.5 + 0.5 s at worst, and some slack.
    HEALTH_SECONDS = 3.0

    def __init__(self, fleet: Fleet, victim: Legacy):
        self.fleet, self.victim = fleet, victim
        self.pid = 0

    def kill(self) -> Fault:
        def inject() -> float:
            at = self.remember()
            os.kill(self.pid, signal.SIGKILL)
            expect("its pid is gone", lambda: not is_running(self.pid), 2)
            return at

        return Fault("legacy kill -9", inject, self.back, 0.2)

    def stop(self) -> Fault:
        def inject() -> float:
            at = self.remember()
            os.kill(self.pid, signal.SIGSTOP)
            expect("its state is T", lambda: process_state(self.pid) == "T", 2)
            return at

        return Fault("legacy SIGSTOP", inject, self.back, self.HEALTH_SECONDS)

    def sick(self) -> Fault:
        def inject() -> float:
            at = self.remember()
            self.fleet.fault(self.victim, "sick")
            expect("its /ping is 500", lambda: status(f"http://{self.victim.address}/ping") == 500, 2)
            return at

        return Fault("legacy sick", inject, self.back, self.HEALTH_SECONDS)

    def exit(self, name: str = "legacy exit") -> Fault:
        def inject() -> float:
            at = self.remember()
            self.fleet.fault(self.victim, "exit")
            expect("its pid is gone", lambda: not is_running(self.pid), 2)
            return at

        return Fault(name, inject, self.back, 0.2)

    def remember(self) -> float:
        self.pid = self.fleet.legacy_pid(self.victim)
        return time.time()

    def back(self) -> bool:
        """Another process answers, and requests of users reach it again."""
        try:
            if self.fleet.legacy_pid(self.victim) == self.pid:
                return False
            return status(f"http://{self.victim.address}/ping") == 200 and sum(origin_counts(self.victim).values()) > 0
        except (OSError, ValueError):
            return False


class NodeFaults:
    """Loss and drain of one proxy node."""

    def __init__(self, fleet: Fleet, node: Node):
        self.fleet, self.node = fleet, node
        self.pid = self.under_way = 0

    def kill(self) -> Fault:
        return Fault("proxy node kill -9", lambda: self.end(signal.SIGKILL, 2), self.back, 0.2, lambda: self.under_way)

    def drain(self) -> Fault:
        return Fault("proxy node drained (SIGTERM)", lambda: self.end(signal.SIGTERM, 40), self.back, 0.0, lambda: self.under_way)

    def end(self, number: int, seconds: float) -> float:
        self.pid = self.fleet.proxy_pid(self.node)
        # At an instant that hurts: with a few requests under way; with a POST among them, which nobody may repeat, if one
        # can be caught (it takes about a millisecond).
        began = time.monotonic()
        while True:
            by_route, waited = requests_in_flight(self.node), time.monotonic() - began
            self.under_way = sum(by_route.values())
            if (by_route["operation"] and self.under_way >= 2) or (waited > 2 and self.under_way >= 3) or waited > 4:
                break
        at = time.time()
        os.kill(self.pid, number)
        expect("its pid is gone", lambda: not is_running(self.pid), seconds)
        return at

    def back(self) -> bool:
        try:
            if self.fleet.proxy_pid(self.node) == self.pid:
                return False
        except LookupError:
            return False
        return status(f"http://{self.node.health}/ready") == 200 and status(f"http://{self.node.http}/db_dummy", 3) == 200


def wait_until_back(fault: Fault, since: float) -> float | None:
    """Seconds since the fault, or None."""
    while time.time() - since < BACK_SECONDS_MAX + 5:
        if fault.back():
            return time.time() - since
        time.sleep(0.1)
    return None


def run_fault(fault: Fault, bases: str, seconds: int, scratch: pathlib.Path, report: Report) -> k6.Result:
    """The mix for `seconds`, the fault after LEAD_SECONDS of it."""
    run = k6.Run("failover", scratch, every_request=True, SECONDS=seconds, RATE=RATE, NODES=bases)
    time.sleep(LEAD_SECONDS)
    at = fault.inject()
    back = wait_until_back(fault, at)
    result = run.finish(seconds + 150)
    judge(fault, at, back, result, seconds, report)
    return result


def requests_in_flight(node: Node) -> collections.Counter:
    """Requests that a proxy node has under way, by the name of the route."""
    text = fetch(f"http://{node.admin}/metrics").decode()
    by_route = re.findall(r'^forefront_proxy_requests_in_flight\{route="([^"]*)"\} (\d+)', text, re.MULTILINE)
    if not by_route:
        raise SystemExit("the proxy does not tell how many requests it has under way")
    return collections.Counter({route: int(count) for route, count in by_route})


def judge(fault: Fault, at: float, back: float | None, result: k6.Result, seconds: int, report: Report) -> None:
    requests = result.requests
    failed = [one for one in requests if not one.expected]
    gets = [one for one in failed if one.method == "GET"]
    others = [one for one in failed if one.method != "GET"]
    in_flight = [one for one in others if spans(one, at)]
    begun_later = [one for one in others if at + SLACK_SECONDS < one.start <= at + fault.notice_seconds]
    outside = len(others) - len(in_flight) - len(begun_later)
    per_second = k6.good_per_second(requests)
    after = len([one for one in requests if one.start > at])

    def row(what: str, bound: str, figure: str, good: bool | None) -> None:
        report.add("R1", f"{fault.name}: {what}", bound, figure, good)

    row("requests sent", ">= 95 % of the planned", f"{len(requests)}, {after} after it", len(requests) >= 0.95 * RATE * seconds)
    if fault.in_flight:
        spanning = [one for one in requests if spans(one, at, 0)]
        posts = len([one for one in spanning if one.method == "POST"])
        row("under way on it at the instant", "", f"{fault.in_flight()} of {len(spanning)} ({posts} POST)", None)
    row("GETs failed", "0", describe(gets), not gets)
    noticed = f"{len(in_flight)} in flight at the instant"
    if fault.notice_seconds > SLACK_SECONDS:
        noticed += f", {len(begun_later)} in the {fault.notice_seconds:g} s until noticed"
    row("POSTs failed", "none begun later", f"{len(others)}: {noticed}, {outside} outside", outside == 0)
    share = len(failed) / max(1, len(requests))
    row("everything failed", "<= 1 %", f"{share:.2%} ({len(failed)})", share <= 0.01)
    row("good answers in the worst second", ">= 60", f"{min(per_second, default=0)}", min(per_second, default=0) >= 60)
    quick = [one for one in requests if one.name not in LISTS]
    slow = [one for one in quick if one.seconds > 1]
    slowest = max(quick, key=lambda one: one.seconds, default=None)
    figure = f"{slowest.seconds * 1000:.0f} ms ({slowest.name}); {len(slow)} over 1 s" if slowest else "none"
    row("slowest request (lists aside)", "", figure, None)
    old = result.value("long_dummy_too_old", "count")
    row("/long_dummy answers older than 60 s", "0", f"{old:.0f}", old == 0)
    figure = f"{back:.1f} s" if back is not None else f"not within {BACK_SECONDS_MAX} s"
    report.add("R2", f"{fault.name}: serves again after", "< 60 s", figure, back is not None and back < BACK_SECONDS_MAX)
    for one in sorted(failed + [one for one in slow if one.expected], key=lambda one: one.start):
        answer = one.status or one.error or "no answer"
        where = "new connection" if one.connecting else "used connection"
        report.note(f"{fault.name}: {one.method} {one.name}, begun {one.start - at:+.3f} s, {one.seconds:.3f} s, {where}: {answer}")


def spans(one: k6.Request, at: float, slack: float = SLACK_SECONDS) -> bool:
    """Whether a request was under way at an instant, give or take the time that the harm itself took."""
    return one.start <= at + slack and one.end >= at - slack


def describe(failed: list[k6.Request]) -> str:
    kinds: dict[str, int] = {}
    for one in failed:
        key = f"{one.name} {one.status or one.error[:30]}"
        kinds[key] = kinds.get(key, 0) + 1
    return f"{len(failed)} {', '.join(f'{n} x {key}' for key, n in kinds.items())}".strip()[:80]


def overload(fleet: Fleet, victim: Legacy, gone_seconds: float, scratch: pathlib.Path, report: Report) -> None:
    """All-uncached load while one process is gone: `fleet` restarts it only after `gone_seconds`."""
    seconds = int(gone_seconds) - 8
    pid = fleet.legacy_pid(victim)
    os.kill(pid, signal.SIGKILL)
    expect("its pid is gone", lambda: not is_running(pid), 2)
    time.sleep(1)
    run = k6.Run("overload", scratch, every_request=True, SECONDS=seconds, RATE=RATE, NODES=fleet.bases)
    time.sleep(seconds + 1)
    still_gone = not reachable(victim.address)
    result = run.finish(90)
    what = "one legacy process gone, all uncached"
    report.add("R1", f"{what}: gone to the end of the load", "port closed", "closed" if still_gone else "open", still_gone)
    planned = RATE * seconds
    report.add("R1", f"{what}: requests sent", ">= 95 % of the planned", f"{result.sent()}", result.sent() >= 0.95 * planned)
    good = result.value("answers_good", "count")
    report.add("R1", f"{what}: good answers", ">= 60/s", f"{good / seconds:.1f}/s", good >= 60 * seconds)
    refused = result.value("answers_refused", "count")
    report.add("R1", f"{what}: refused (503 with Retry-After)", "", f"{refused:.0f} ({refused / seconds:.1f}/s)", None)
    otherwise = [one for one in result.requests if one.status not in (200, 503)]
    count = int(result.value("answers_failed_otherwise", "count"))
    report.add("R1", f"{what}: failed in another way", "0", f"{count} {describe(otherwise)[2:]}", count == 0)


def node_faults(fleet: Fleet, scratch: pathlib.Path, report: Report, kinds: tuple[str, ...] = ("kill", "drain")) -> None:
    """The same node each time, so also one that has just come back."""
    victim = NodeFaults(fleet, fleet.nodes[0])
    with Balancer(fleet, scratch) as base:
        for kind in kinds:
            run_fault(getattr(victim, kind)(), base, 45, scratch, report)


def legacy_faults(fleet: Fleet, scratch: pathlib.Path, report: Report, kinds=("kill", "stop", "sick", "exit")) -> None:
    for place, kind in enumerate(kinds):
        victim = LegacyFaults(fleet, fleet.legacy[place % 2])
        run_fault(getattr(victim, kind)(), fleet.bases, 40, scratch, report)


def wait_until_whole(fleet: Fleet, seconds: float = 60) -> None:
    """Both processes serve, both proxies have seen it (one more health interval) and are warm."""
    deadline = time.monotonic() + seconds
    while not all(status(f"http://{one.address}/ping") == 200 for one in fleet.legacy):
        if time.monotonic() > deadline:
            raise SystemExit("a legacy process does not come back")
        time.sleep(0.2)
    for node in fleet.nodes:
        fetch(f"http://{node.health}/ready")
        # A node whose origin was away gets ready with a cold cache, and sees a process come back at its next probe.
        while status(f"http://{node.http}/long_dummy", 30) != 200:
            if time.monotonic() > deadline:
                raise SystemExit(f"node {node.name} does not answer /long_dummy")
            time.sleep(0.2)
    time.sleep(2)
