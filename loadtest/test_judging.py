"""The judging of a run, on made-up requests: what no run of the system would show."""

import contextlib
import dataclasses
import io
import pathlib
import sys
import tempfile
import unittest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "benches"))

import faults  # noqa: E402
import h3  # noqa: E402
import k6  # noqa: E402
import protocols  # noqa: E402
from report import Report  # noqa: E402

AT = 1_000_010.0  # The instant of the fault: ten seconds after the first request.
ROWS = """metric_name,timestamp,metric_value,error,expected_response,method,name,status
http_reqs,1700000000500000,1,,true,GET,movie,200
http_req_duration,1700000000500000,40.5,,true,GET,movie,200
http_req_blocked,1700000000500000,9.5,,true,GET,movie,200
http_req_duration,1700000001000000,100,EOF,false,POST,operation,0
"""


def request(start: float, seconds: float = 0.01, method: str = "GET", good: bool = True) -> k6.Request:
    name = "operation" if method == "POST" else "movie"
    return k6.Request(name, method, 200 if good else 502, "", start, start + seconds, good)


def load(seconds: int = 20, rate: int = 120) -> list[k6.Request]:
    return [request(AT - 10 + n / rate) for n in range(seconds * rate)]


def verdicts(requests: list[k6.Request], notice_seconds: float = 0.2, back: float | None = 3.0) -> dict[str, bool | None]:
    fault = faults.Fault("test", lambda: AT, lambda: True, notice_seconds)
    report = Report("test")
    with contextlib.redirect_stdout(io.StringIO()):
        faults.judge(fault, AT, back, k6.Result({}, requests), 20, report)
    return {row["what"].removeprefix("test: "): row["good"] for row in report.rows}


class Judging(unittest.TestCase):
    def test_a_clean_run_passes(self):
        self.assertNotIn(False, verdicts(load()).values())

    def test_a_failed_get_is_missed(self):
        self.assertIs(verdicts(load() + [request(AT, good=False)])["GETs failed"], False)

    def test_a_post_in_flight_may_be_lost(self):
        found = verdicts(load() + [request(AT - 0.01, 0.02, "POST", good=False)])
        self.assertIs(found["POSTs failed"], True)

    def test_a_post_after_the_fault_was_noticed_may_not(self):
        lost = request(AT + 0.5, 0.02, "POST", good=False)
        self.assertIs(verdicts(load() + [lost])["POSTs failed"], False)
        self.assertIs(verdicts(load() + [lost], notice_seconds=3)["POSTs failed"], True)

    def test_a_post_that_failed_before_the_fault_may_not(self):
        self.assertIs(verdicts(load() + [request(AT - 5, 0.02, "POST", good=False)])["POSTs failed"], False)

    def test_more_than_one_percent_is_missed(self):
        lost = [request(AT, 0.02, "POST", good=False)] * 30
        self.assertIs(verdicts(load() + lost)["everything failed"], False)

    def test_a_second_without_answers_is_missed(self):
        gap = [one for one in load() if not AT <= one.start < AT + 1.5]
        self.assertIs(verdicts(gap)["good answers in the worst second"], False)

    def test_too_few_requests_do_not_count(self):
        self.assertIs(verdicts(load()[::2])["requests sent"], False)

    def test_a_victim_that_stays_away_is_missed(self):
        self.assertIs(verdicts(load(), back=None)["serves again after"], False)


def over(protocol: str, requests: list[k6.Request], bounded: bool = True) -> dict[str, bool | None]:
    report = Report("test")
    with contextlib.redirect_stdout(io.StringIO()):
        protocols.judge("test", protocol, requests, AT, 20, report, bounded=bounded)
    return {row["what"].removeprefix("test: "): row["good"] for row in report.rows}


class JudgingProtocols(unittest.TestCase):
    def test_a_clean_run_passes(self):
        self.assertNotIn(False, over("h2", spoken("HTTP/2.0")).values())

    def test_a_post_in_flight_may_not_be_lost(self):
        lost = request(AT - 0.01, 0.02, "POST", good=False)
        self.assertIs(over("h2", spoken("HTTP/2.0") + [lost])["failed"], False)
        self.assertIsNone(over("h2", spoken("HTTP/2.0") + [lost], bounded=False)["failed"])

    def test_another_protocol_is_missed(self):
        self.assertIs(over("h1-tls", spoken("HTTP/2.0"))["spoken"], False)

    def test_a_load_that_ended_before_the_fault_does_not_count(self):
        early = [one for one in spoken("HTTP/3") if one.start < AT]
        self.assertIs(over("h3", early * 2)["requests sent"], False)

    def test_h3load_is_read_as_k6_is(self):
        told = {"name": "movie", "method": "GET", "status": 0, "error": "lost", "start": AT, "seconds": 0.5}
        (one,) = h3.requests({"requests": [told]})
        self.assertEqual((one.expected, one.error, one.end, one.protocol), (False, "lost", AT + 0.5, "HTTP/3"))


def spoken(protocol: str) -> list[k6.Request]:
    return [dataclasses.replace(one, protocol=protocol) for one in load()]


class Reading(unittest.TestCase):
    def test_a_request_begins_before_its_wait_for_a_connection(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "k6.csv"
            path.write_text(ROWS)
            first, second = k6.read_requests(path)
        self.assertAlmostEqual(first.seconds, 0.05, places=6)
        self.assertEqual((second.status, second.error, second.expected), (0, "EOF", False))

    def test_incomplete_seconds_are_left_out(self):
        self.assertEqual(k6.good_per_second(load(seconds=4)), [120, 120])


class Verdict(unittest.TestCase):
    def finish(self, *goods: bool | None) -> int:
        report = Report("test")
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as directory:
            for good in goods:
                report.add("R1", "what", "bound", "figure", good)
            return report.finish(pathlib.Path(directory))

    def test_one_missed_bound_fails_the_run(self):
        self.assertEqual(self.finish(True, None), 0)
        self.assertEqual(self.finish(True, False), 1)

    def test_a_run_that_judged_nothing_fails(self):
        self.assertEqual(self.finish(None), 1)


if __name__ == "__main__":
    unittest.main()
