"""Drains, restarts and new certificates over each protocol, at 120 requests/s of the mix: nothing fails."""

import hashlib
import os
import pathlib
import signal
import socket
import ssl
import time
from typing import Callable

import faults
import h3
import k6
from balancer import Balancer
from fleet import Fleet, is_running, listening_inodes, status
from node import OwnNode, make_certificate
from report import Report

RATE = faults.RATE
H1_OVER_TLS = "http2client=0"  # A setting of Go's: k6 chooses HTTP/2 by itself wherever it is offered.
CERTIFICATE_SECONDS = 15  # The files are looked at every five.

# Name, whether over TLS, what k6 is told, what it must have spoken.
OVER_TCP = {
    "h1": (False, "", "HTTP/1.1"),
    "h1-tls": (True, H1_OVER_TLS, "HTTP/1.1"),
    "h2": (True, "", "HTTP/2.0"),
}
PROTOCOLS = [*OVER_TCP, "h3"]


def drain(fleet: Fleet, scratch: pathlib.Path, report: Report, seconds: int, wanted: list[str]) -> None:
    """One node drained: over TCP behind the balancer; over HTTP/3 its clients go to the other by themselves."""
    for protocol in wanted:
        faults.wait_until_whole(fleet)
        fault = faults.NodeFaults(fleet, fleet.nodes[0]).drain()
        if protocol == "h3":
            run = h3.rate(scratch, [node.https for node in fleet.nodes], RATE, seconds)
            requests, at, back, told = under_load(run, fault.inject, fault.back, seconds)
        else:
            secure, godebug, _ = OVER_TCP[protocol]
            with Balancer(fleet, scratch, secure) as base:
                run = k6.Run("failover", scratch, every_request=True, godebug=godebug, SECONDS=seconds, RATE=RATE, NODES=base)
                requests, at, back, told = under_load(run, fault.inject, fault.back, seconds)
        what = f"node drained over {protocol}"
        judge(what, protocol, requests, at, seconds, report)
        report.add("R1", f"{what}: under way on it at the instant", "", f"{fault.in_flight()}", None)
        if protocol == "h3":
            add_moves(what, told, report)
        worst = min(k6.good_per_second(requests), default=0)
        report.add("R1", f"{what}: good answers in the worst second", ">= 60", f"{worst}", worst >= 60)
        add_back(what, back, report)


def handover(fleet: Fleet, binary: pathlib.Path, scratch: pathlib.Path, report: Report, seconds: int, wanted: list[str]) -> None:
    """The only node restarted; its keeper holds the sockets meanwhile."""
    origins = [one.address for one in fleet.legacy]
    with OwnNode(binary, scratch, origins, "handover", kept=True) as node:
        for protocol in wanted:
            while status(f"http://{node.http}/long_dummy", 30) != 200:
                time.sleep(0.2)
            restart = Restart(node)
            if protocol == "h3":
                run = h3.rate(scratch, [node.https], RATE, seconds)
            else:
                secure, godebug, _ = OVER_TCP[protocol]
                base = f"https://{node.https}" if secure else f"http://{node.http}"
                run = k6.Run("failover", scratch, every_request=True, godebug=godebug, SECONDS=seconds, RATE=RATE, NODES=base)
            requests, at, back, told = under_load(run, restart.inject, restart.back, seconds)
            what = f"node restarted by hand-over, {protocol}"
            # Its successor begins with an empty cache, so /long_dummy waits for the origin, whatever the sockets do.
            judge(what, protocol, requests, at, seconds, report, bounded=protocol != "h3", aside=("long_dummy",))
            if protocol == "h3":
                add_moves(what, told, report)
            add_back(what, back, report)


class Restart:
    """SIGTERM to a kept proxy; its keeper starts it anew on the sockets it holds."""

    def __init__(self, node: OwnNode):
        self.node, self.old = node, node.pid()
        self.sockets = self.inodes()

    def inodes(self) -> list[set[str]]:
        return [listening_inodes(int(address.rsplit(":", 1)[1])) for address in (self.node.http, self.node.https)]

    def inject(self) -> float:
        at = time.time()
        os.kill(self.old, signal.SIGTERM)
        faults.expect("its pid is gone", lambda: not is_running(self.old), 40)
        faults.expect("another one runs", lambda: self.node.pid() not in (None, self.old), 20)
        faults.expect("it has the sockets of the one before", lambda: self.inodes() == self.sockets, 2)
        return at

    def back(self) -> bool:
        return status(f"http://{self.node.health}/ready") == 200 and status(f"http://{self.node.http}/db_dummy", 3) == 200


def certificate(fleet: Fleet, binary: pathlib.Path, scratch: pathlib.Path, report: Report, seconds: int) -> None:
    """The files of the certificate replaced under load: over kept connections (h2, h3) and over new ones (h1)."""
    rate = RATE // 2
    directory = scratch / "certificate"
    directory.mkdir()
    make_certificate(directory)
    tls = f'certificate = "{directory}/node.crt"\nprivate_key = "{directory}/node.key"'
    with OwnNode(binary, scratch, [one.address for one in fleet.legacy], "certificate", tls) as node:
        status(f"http://{node.http}/long_dummy", 30)
        old = shown_over_tcp(node.https)
        faults.expect("QUIC shows the first certificate", lambda: h3.certificate(scratch, node.https) == old, 5)
        load = {"SECONDS": seconds, "RATE": rate, "NODES": f"https://{node.https}"}
        runs = {
            "h2": k6.Run("failover", scratch, every_request=True, **load),
            "h1-tls": k6.Run("failover", scratch, every_request=True, godebug=H1_OVER_TLS, NEW_CONNECTIONS=1, **load),
            "h3": h3.rate(scratch, [node.https], rate, seconds),
        }
        time.sleep(faults.LEAD_SECONDS)
        pid, at = node.pid(), time.time()
        make_certificate(directory)
        wanted = hashlib.sha256(ssl.PEM_cert_to_DER_cert((directory / "node.crt").read_text())).hexdigest()
        if wanted == old:
            raise SystemExit("the fault did not happen: the new certificate is the old one")
        for what, shown in (("TCP", lambda: shown_over_tcp(node.https)), ("QUIC", lambda: h3.certificate(scratch, node.https))):
            took = wait_until(lambda: shown() == wanted, at + CERTIFICATE_SECONDS)
            figure = "not shown" if took is None else f"after {took - at:.1f} s"
            bound = f"within {CERTIFICATE_SECONDS} s"
            report.add("R9", f"certificate replaced: the new one over {what}", bound, figure, took is not None)
        for protocol, run in runs.items():
            result = run.finish(seconds + 90)
            requests = h3.requests(result) if protocol == "h3" else result.requests
            what = f"certificate replaced, {protocol}"
            judge(what, protocol, requests, at, seconds, report, rate=rate, requirement="R9")
            if protocol == "h3":
                report.add("R9", f"{what}: connections ended", "0", f"{result['moves']}", result["moves"] == 0)
        report.add("R9", "certificate replaced: the same process", "alive", f"{is_running(pid)}", node.child.poll() is None)


def under_load(run, inject: Callable[[], float], is_back: Callable[[], bool], seconds: int):
    """Harms while the load runs. Returns its requests, the instant, when the victim was back, and what h3load told."""
    time.sleep(faults.LEAD_SECONDS)
    at = inject()
    back = wait_until(is_back, at + faults.BACK_SECONDS_MAX + 5)
    result = run.finish(seconds + 150)
    requests = h3.requests(result) if isinstance(run, h3.Run) else result.requests
    return requests, at, back and back - at, result


def wait_until(condition: Callable[[], bool], deadline: float) -> float | None:
    """The time at which it held; None: not by then."""
    while time.time() < deadline:
        if condition():
            return time.time()
        time.sleep(0.1)
    return None


def judge(
    what: str,
    protocol: str,
    requests: list[k6.Request],
    at: float,
    seconds: int,
    report: Report,
    rate: int = RATE,
    bounded: bool = True,
    aside: tuple[str, ...] = (),
    requirement: str = "R1",
) -> None:
    """No request at all fails, GET or POST, at whatever instant it was sent."""

    def row(part: str, bound: str, figure: str, good: bool | None) -> None:
        report.add(requirement, f"{what}: {part}", bound, figure, good)

    after = len([one for one in requests if one.start > at])
    enough = len(requests) >= 0.95 * rate * seconds and after > 0
    row("requests sent", ">= 95 % of the planned", f"{len(requests)}, {after} after it", enough)
    wanted = OVER_TCP[protocol][2] if protocol in OVER_TCP else "HTTP/3"
    others = {one.protocol for one in requests if one.status} - {wanted}
    row("spoken", wanted, ", ".join(sorted({wanted} | others)), not others)
    failed = [one for one in requests if not one.expected]
    row("failed", "0" if bounded else "", faults.describe(failed), not failed if bounded else None)
    quick = [one for one in requests if one.name not in (*faults.LISTS, *aside)]
    slowest = max(quick, key=lambda one: one.seconds, default=None)
    late = [one for one in quick if one.seconds > 1]
    figure = f"{slowest.seconds * 1000:.0f} ms ({slowest.name}); {len(late)} over 1 s" if slowest else "none"
    row(f"slowest request ({' and '.join(('lists', *aside))} aside)", "", figure, None)
    for one in sorted(failed, key=lambda one: one.start):
        where = "new connection" if one.connecting else "used connection"
        begun = f"begun {one.start - at:+.3f} s, {one.seconds:.3f} s"
        report.note(f"{what}: {one.method} {one.name}, {begun}, {where}: {one.status or one.error}")


def add_moves(what: str, told: dict, report: Report) -> None:
    """That clients were told to go is the proof that this was a drain of theirs."""
    figure = f"{told['moves']}; {told['repeated_after_goaway']} requests sent again"
    report.add("R1", f"{what}: connections that ended by GOAWAY", ">= 1", figure, told["moves"] > 0)


def add_back(what: str, back: float | None, report: Report) -> None:
    figure = f"{back:.1f} s" if back is not None else f"not within {faults.BACK_SECONDS_MAX} s"
    report.add("R2", f"{what}: serves again after", "< 60 s", figure, back is not None and back < faults.BACK_SECONDS_MAX)


def shown_over_tcp(address: str) -> str:
    """SHA-256 of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain, server_hostname="localhost") as wire:
        return hashlib.sha256(wire.getpeercert(True)).hexdigest()
