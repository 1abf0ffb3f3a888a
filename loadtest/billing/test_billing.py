"""The judging of a drill, on made-up answers and orders: what no run of a sound system would show."""

import contextlib
import dataclasses
import io
import pathlib
import subprocess
import sys
import tempfile
import time
import types
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent.parent / "benches")]

import judging  # noqa: E402
import keeper  # noqa: E402
from ledger import REFUSED, Arrival, Order, Shown, Spending, Still, Told, bucket_of, shard_of  # noqa: E402
from ledger import judge_orders, without_lease  # noqa: E402
from load import Audit, Done, Failure, Load  # noqa: E402
from nodes import Taken  # noqa: E402
from report import Report  # noqa: E402

SECOND = 1_000_000


def shown(balance: int, **other) -> Shown:
    return dataclasses.replace(Shown(balance, 0, "active", 1, None, None), **other)


def still(*amounts: int) -> Still:
    """With 1000 and these put in."""
    account = Still(7, 1000)
    for amount in amounts:
        assert account.follows(add(amount), 200, shown(account.balance + amount)) == ""
    return account


def add(amount: int) -> Order:
    return Order(7, f"add-{amount}", "add_money", amount=amount)


def withdraw(amount: int) -> Order:
    return Order(7, f"withdraw-{amount}", "withdraw", amount=amount)


class Buckets(unittest.TestCase):
    def test_they_are_those_of_the_nodes(self):
        # Written down in src/billing/domain/bucket.rs as well.
        found = [bucket_of(id) for id in (*range(11), (1 << 64) - 1)]
        self.assertEqual(found, [535, 465, 110, 53, 978, 618, 592, 487, 622, 228, 466, 936])


class StillAccounts(unittest.TestCase):
    def test_answers_that_follow_are_right(self):
        account = still(10, 200)
        self.assertEqual(account.follows(withdraw(210), 200, shown(1000)), "")
        self.assertEqual(account.reads(shown(1000)), "")

    def test_what_is_lost_is_told(self):
        self.assertIn("the last 2 operations are lost", still(10, 200, 3000).follows(add(5), 200, shown(1015)))
        self.assertIn("an operation is lost", still(10, 200, 3000).follows(add(5), 200, shown(4205)))
        self.assertIn("the last 1 operations are lost", still(10, 200).reads(shown(1010)))

    def test_what_is_done_twice_is_told(self):
        self.assertIn("applied twice", still(10, 200).follows(add(5), 200, shown(1220)))
        self.assertIn("applied twice", still(10, 200).reads(shown(1410)))

    def test_a_mistake_is_told_once(self):
        account = still(10)
        self.assertNotEqual(account.follows(add(5), 200, shown(1020)), "")
        self.assertEqual(account.follows(add(6), 200, shown(1026)), "")

    def test_what_was_not_done_must_be_refused_and_the_other_way_round(self):
        self.assertEqual(still(10).follows(withdraw(1011), 422, REFUSED), "")
        self.assertNotEqual(still(10).follows(withdraw(1011), 200, shown(0)), "")
        self.assertNotEqual(still(10).follows(withdraw(1000), 422, REFUSED), "")
        self.assertNotEqual(still(10).follows(add(5), 404, "urn:problem-type:forefront:billing:unknown-account"), "")
        self.assertNotEqual(still(10).reads("urn:problem-type:forefront:billing:unknown-account"), "")

    def test_nothing_else_of_it_may_change(self):
        self.assertIn("odd", still(10).reads(shown(1010, version=2)))
        self.assertIn("odd", still(10).reads(shown(1010, velocity=1)))


def spending(ends_at: int = 10 * SECOND) -> Spending:
    account = Spending(1)
    order = Order(1, "open", "create", balance=4 * SECOND, velocity=SECOND)
    begun = ends_at - 4 * SECOND
    assert account.follows(order, 201, shown(4 * SECOND, depletes_at=ends_at), begun - 5, begun + 5) == ""
    return account


class SpendingAccounts(unittest.TestCase):
    """Money for 2 s each time; it ends at second 10 at first."""

    def pay(self, account: Spending, ends_at: int, version: int, asked_at: int, answered_at: int) -> str:
        order = Order(1, "pay", "add_money", amount=2 * SECOND)
        return account.follows(order, 200, shown(0, depletes_at=ends_at, version=version), asked_at, answered_at)

    def test_money_that_comes_in_time_moves_the_end(self):
        account = spending()
        self.assertEqual(self.pay(account, 12 * SECOND, 1, 8 * SECOND, 9 * SECOND), "")
        self.assertEqual(account.versions[1].depletes_at, 12 * SECOND)

    def test_money_that_comes_later_counts_from_when_it_came(self):
        for version in (1, 2):
            account = spending()
            self.assertEqual(self.pay(account, 13 * SECOND, version, int(10.9 * SECOND), int(11.1 * SECOND)), "")
            self.assertEqual(account.depletes_at, 13 * SECOND)

    def test_money_that_is_lost_or_counted_twice_is_told(self):
        for ends_at in (10 * SECOND, 14 * SECOND):
            self.assertNotEqual(self.pay(spending(), ends_at, 1, 8 * SECOND, 9 * SECOND), "")

    def test_an_account_is_not_reopened_before_it_has_ended(self):
        self.assertNotEqual(self.pay(spending(), int(10.5 * SECOND), 2, 8 * SECOND, 9 * SECOND), "")

    def test_a_refusal_is_told(self):
        self.assertNotEqual(spending().follows(Order(1, "pay", "add_money", amount=1), 404, "urn:...:unknown-account", 0, 1), "")


def arrival(at: float, version: int = 1, node: str = "a", status: int = 200, account: int = 1) -> Arrival:
    return Arrival(int(at * SECOND), node, account, version, status)


class Orders(unittest.TestCase):
    def test_each_end_needs_a_delivered_order(self):
        self.assertEqual(judge_orders([spending()], [arrival(10.1)], 20 * SECOND).missed, [])
        self.assertEqual(judge_orders([spending()], [], 20 * SECOND).missed, [(1, 1)])
        self.assertEqual(judge_orders([spending()], [arrival(10.1, status=500)], 20 * SECOND).missed, [(1, 1)])
        self.assertEqual(judge_orders([spending()], [arrival(10.1, version=2)], 20 * SECOND).missed, [(1, 1)])

    def test_an_end_that_is_still_to_come_needs_none(self):
        self.assertEqual(judge_orders([spending()], [], 9 * SECOND).missed, [])

    def test_an_order_that_money_may_have_cancelled_is_not_missed(self):
        account = spending()
        account.versions[1].raced = True
        self.assertEqual(judge_orders([account], [], 20 * SECOND).missed, [])

    def test_copies_are_counted(self):
        judged = judge_orders([spending()], [arrival(10.1), arrival(10.2), arrival(10.3, status=500)], 20 * SECOND)
        self.assertEqual((judged.delivered, judged.copies, judged.delays_us), (1, 1, [SECOND // 10]))

    def test_an_order_before_the_end_or_of_no_version_is_wrong(self):
        for wrong in (arrival(9.999), arrival(10.1, version=2), arrival(10.1, account=9), arrival(9, status=500)):
            self.assertEqual(judge_orders([spending()], [wrong], 20 * SECOND).early, [wrong])

    def test_only_the_owner_sends(self):
        shard = shard_of(1, 2)
        taken = [Taken(5, "a", shard, 1), Taken(0, "b", 1 - shard, 1), Taken(20, "b", shard, 2), Taken(30, "b", shard, 3)]
        good = [arrival(10), arrival(20.05), arrival(19.95, node="b"), arrival(31, node="b")]
        bad = [arrival(20.2), arrival(40), arrival(10, node="b"), arrival(4), arrival(10, node="c")]
        self.assertEqual(without_lease(good + bad, taken, 2, SECOND // 10), bad)


def load(told: int = 2, wrong: tuple[str, ...] = (), unanswered: int = 0) -> types.SimpleNamespace:
    answered = [Told(add(amount), 200, shown(amount)) for amount in range(told)]
    return types.SimpleNamespace(told=answered, wrong=list(wrong), unanswered=[add(1)] * unanswered, reads=0)


class Rows(unittest.TestCase):
    def verdicts(self, judge) -> dict[str, bool | None]:
        report = Report("test")
        with contextlib.redirect_stdout(io.StringIO()):
            judge(report)
        return {row["what"].removeprefix("test: "): row["good"] for row in report.rows}

    def ledger(self, of_load, audit: Audit) -> dict[str, bool | None]:
        return self.verdicts(lambda report: judging.add_ledger(report, "R19", "test", of_load, audit))

    def test_a_clean_run_passes(self):
        self.assertNotIn(False, self.ledger(load(), Audit([], 2, [])).values())

    def test_each_mistake_is_missed(self):
        self.assertIs(self.ledger(load(wrong=("the last 1 operations are lost",)), Audit([], 2, []))["lost"], False)
        self.assertIs(self.ledger(load(), Audit(["an operation is applied twice"], 2, []))["applied twice"], False)
        self.assertIs(self.ledger(load(wrong=("unexplained",)), Audit([], 2, []))["answered oddly"], False)
        replayed = self.ledger(load(), Audit([], 2, ["another answer"]))
        self.assertIs(replayed["lost"], False)
        self.assertIs(replayed["keys that tell their first answer again"], False)
        self.assertIs(self.ledger(load(), Audit([], 1, []))["keys that tell their first answer again"], False)
        self.assertIs(self.ledger(load(unanswered=1), Audit([], 2, []))["never answered"], False)
        self.assertIs(self.ledger(load(told=0), Audit([], 0, []))["operations"], False)

    def test_one_long_outage_is_missed_and_so_is_none_at_all(self):
        times = lambda *seconds: lambda report: judging.add_times(report, "R19", "times", 5, list(seconds))  # noqa: E731
        self.assertEqual(self.verdicts(times(1, 5)), {"times": True})
        self.assertEqual(self.verdicts(times(1, 5.1)), {"times": False})
        self.assertEqual(self.verdicts(times()), {"times": False})

    def test_a_run_in_which_nothing_ended_is_missed(self):
        judged = judge_orders([], [], 0)
        found = self.verdicts(lambda report: judging.add_orders(report, "test", judged, []))
        self.assertIs(found["depletions without a delivered order"], False)


class Times(unittest.TestCase):
    def made(self) -> Load:
        """Shard 0 answers each tenth of a second, but for 10.0 to 12.5; shard 1 always."""
        made = Load([], 2, 1)
        for tenth in range(200):
            at = tenth / 10
            if not 10 < at < 12.5:
                made.done.append(Done(at - 0.01, at, 0))
            made.done.append(Done(at - 0.005, at, 1))
        made.failures = [Failure(11, 0, "a", "503"), Failure(12, 0, "a", "503"), Failure(15, 0, "a", "cut")]
        return made

    def test_the_first_write_was_asked_after_the_instant(self):
        made = self.made()
        self.assertAlmostEqual(made.first_write(9.995, 0), 12.5)
        self.assertAlmostEqual(made.first_write(10.05, 1), 10.1)
        self.assertIsNone(made.first_write(20, 0))

    def test_the_longest_gap_is_found_also_if_it_began_before(self):
        made = self.made()
        self.assertAlmostEqual(made.longest_gap(10.05, 19, 0), 2.5)
        self.assertAlmostEqual(made.longest_gap(10.05, 19, 1), 0.1)
        self.assertAlmostEqual(made.longest_gap(11, 12, 0), 2.5)

    def test_failures_are_counted_between(self):
        self.assertEqual(self.made().failures_between(10, 14), {"503": 2})

    def test_percentiles(self):
        values = [float(number) for number in range(1000)]
        self.assertEqual(judging.percentile(values, 0.99), 990)
        self.assertEqual(judging.percentile([], 0.99), float("inf"))


class Keeping(unittest.TestCase):
    def test_what_a_drill_leaves_is_ended_with_its_directory(self):
        directory = pathlib.Path(tempfile.mkdtemp(prefix="forefront-drill-test-")).resolve()
        (directory / "below").mkdir()
        places = (directory, directory / "below")
        inside = [subprocess.Popen(["sleep", "60"], cwd=place, start_new_session=True) for place in places]
        outside = subprocess.Popen(["sleep", "60"], cwd=directory.parent)
        kept = subprocess.Popen([sys.executable, keeper.__file__, str(directory)], stdin=subprocess.PIPE, cwd="/")
        try:
            deadline = time.monotonic() + 10
            while set(keeper.residents(directory)) != {one.pid for one in inside} and time.monotonic() < deadline:
                time.sleep(0.01)
            kept.stdin.close()
            self.assertEqual(kept.wait(20), 0)
            self.assertEqual([one.wait(5) for one in inside], [-9, -9])
            self.assertFalse(directory.exists())
            self.assertIsNone(outside.poll())
        finally:
            for one in (*inside, outside, kept):
                one.kill()
                one.wait()


if __name__ == "__main__":
    unittest.main()
