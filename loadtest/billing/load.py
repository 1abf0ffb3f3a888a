"""Clients of billing nodes: every account has one client, which knows what each answer must be; who gets no answer asks again
with the same key until there is one. All on one thread beside the drill's."""

import asyncio
import bisect
import dataclasses
import random
import threading
import time

from ledger import MICROS, Order, Shown, Spending, Still, Told, answer_of, shard_of
from wire import Door, NoAnswer

TRY_SECONDS = 2.0  # For one try. Whoever asks for somebody waiting goes elsewhere then.
PATIENCE_SECONDS = 120.0  # For an answer, over all tries: beyond any outage that is made here.
PAUSE_SECONDS = 0.1  # After a try that nothing came of.
AMOUNT_MAX = 10**9
STILL_BALANCE = 10**12
REPLAY_AT_ONCE = 1000  # As many operations as a batch may have.
BATCH_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """An operation that was answered."""

    sent: float  # Its last try.
    answered: float
    shard: int


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A try without a final answer."""

    at: float
    shard: int
    door: str
    kind: str  # "503", "timeout", "cut", ...


class Load:
    """`with Load(...) as load:` opens the accounts, then begins; ends with nothing in flight."""

    def __init__(
        self,
        doors: list[str],
        shards: int,
        seed: int,
        rate: float = 300,
        tellers: int = 32,
        accounts: int = 8,
        spending: int = 0,
        life: tuple[float, float] = (2.0, 8.0),
    ):
        self.shards, self.rate, self.tellers, self.accounts = shards, rate, tellers, accounts
        self.spending_count, self.life = spending, life
        self.addresses, self.seed = doors, seed
        self.told: list[Told] = []
        self.done: list[Done] = []
        self.failures: list[Failure] = []
        self.wrong: list[str] = []
        self.unanswered: list[Order] = []
        self.reads = 0
        self.still: list[Still] = []
        self.spending: list[Spending] = []
        self.problem: BaseException | None = None
        self.stopping = threading.Event()
        self.begun = threading.Event()

    # ------------------------------------------------------------------------------------------------------- from outside

    def __enter__(self) -> "Load":
        # It must not keep a drill from ending that went wrong elsewhere.
        self.thread = threading.Thread(target=self.run, name="load", daemon=True)
        self.thread.start()
        if not self.begun.wait(PATIENCE_SECONDS):
            raise SystemExit(f"the load has not begun within {PATIENCE_SECONDS:g} s")
        self.check()
        return self

    def __exit__(self, kind, *_) -> None:
        self.stopping.set()
        if kind is None:
            self.thread.join(PATIENCE_SECONDS + 10)
            self.check()
            if self.thread.is_alive():
                raise SystemExit("the load does not end")

    def check(self) -> None:
        if self.problem:
            raise SystemExit(f"the load has failed: {self.problem!r}") from self.problem

    def wait_for_writes(self, since: float, shards: list[int], seconds: float) -> dict[int, float] | None:
        """By shard, how long after `since` the first operation was answered that was asked after it; None: not in time."""
        found = lambda: {shard: self.first_write(since, shard) for shard in shards}  # noqa: E731
        deadline = since + seconds
        while None in found().values():
            self.check()
            if time.time() > deadline:
                return None
            time.sleep(0.02)
        return {shard: at - since for shard, at in found().items()}

    def first_write(self, since: float, shard: int) -> float | None:
        # Appended by the load's thread in the order of the answers, never changed.
        count = len(self.done)
        begin = bisect.bisect_left(self.done, since, 0, count, key=lambda one: one.answered)
        after = (one.answered for one in self.done[begin:count] if one.shard == shard and one.sent >= since)
        return next(after, None)

    def longest_gap(self, since: float, until: float, shard: int) -> float:
        """The longest time without an answered operation of a shard that begins within these times."""
        times = [one.answered for one in self.done if one.shard == shard]
        begin, end = max(0, bisect.bisect_left(times, since) - 1), bisect.bisect_right(times, until)
        gaps = [later - earlier for earlier, later in zip(times[begin:end], times[begin + 1 : end + 1])]
        return max(gaps, default=until - since)

    def failures_between(self, since: float, until: float) -> dict[str, int]:
        kinds: dict[str, int] = {}
        for one in list(self.failures):
            if since <= one.at <= until:
                kinds[one.kind] = kinds.get(one.kind, 0) + 1
        return kinds

    # -------------------------------------------------------------------------------------------------------- on its thread

    def run(self) -> None:
        try:
            asyncio.run(self.main())
        except BaseException as problem:  # noqa: BLE001  # Told by `check` on the drill's thread.
            self.problem = problem
        finally:
            self.begun.set()

    async def main(self) -> None:
        self.doors = [Door(address) for address in self.addresses]
        clients = [Teller(self, number) for number in range(self.tellers)]
        clients += [Spender(self, number) for number in range(self.spending_count)]
        await asyncio.gather(*(one.open() for one in clients))
        self.begun.set()
        try:
            await asyncio.gather(*(one.work() for one in clients))
        finally:
            for door in self.doors:
                door.close()

    async def pause(self, seconds: float) -> None:
        """Shorter if the load is told to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.stopping.is_set():
            await asyncio.sleep(min(left, 0.2))


class Client:
    """Keeps to one node for as long as it answers."""

    def __init__(self, load: Load, name: str, door: int):
        self.load, self.name, self.at = load, name, door
        self.random = random.Random(f"{load.seed} {name}")
        self.count = 0

    def key(self) -> str:
        self.count += 1
        return f"{self.load.seed}-{self.name}-{self.count}"

    async def order(self, order: Order) -> tuple[int, Shown | str, int, int] | None:
        """Status, answer, when it was first asked and when it was answered, in microseconds. None: nobody ever answered."""
        path, content = order.request()
        shard, asked_at = shard_of(order.account, self.load.shards), int(time.time() * MICROS)
        told = await self.until_answered("POST", path, content, order.key, shard)
        if told is None:
            self.load.unanswered.append(order)
            return None
        status, body, sent = told
        answered, answer = time.time(), answer_of(body)
        self.load.done.append(Done(sent, answered, shard))
        self.load.told.append(Told(order, status, answer))
        return status, answer, asked_at, int(answered * MICROS)

    async def read(self, account: int) -> Shown | str | None:
        shard = shard_of(account, self.load.shards)
        told = await self.until_answered("GET", f"/billing/v1/accounts/{account}", None, "", shard)
        self.load.reads += 1
        return told and answer_of(told[1])

    async def until_answered(
        self, method: str, path: str, content: dict | None, key: str, shard: int, try_seconds: float = TRY_SECONDS
    ) -> tuple | None:
        """Status, body, and when it was sent the last time. None: never within the patience."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            door, sent = self.load.doors[self.at], time.time()
            # Somewhat different for each, so that a node that is back does not get all at once.
            seconds = try_seconds * self.random.uniform(0.75, 1)
            try:
                answer = await door.ask(method, path, content, key, seconds)
                if answer.status not in (503, 504, 508) and answer.body is not None:
                    return answer.status, answer.body, sent
                kind, wait = str(answer.status), max(answer.retry_after, PAUSE_SECONDS)
            except NoAnswer as why:
                kind, wait = str(why), PAUSE_SECONDS
            self.load.failures.append(Failure(time.time(), shard, door.address, kind))
            self.at = (self.at + 1) % len(self.load.doors)
            await asyncio.sleep(wait * self.random.uniform(0.5, 1))
        return None


class Teller(Client):
    """Puts money into accounts of one shard that spend none, takes it out, and looks at them, at a steady pace."""

    def __init__(self, load: Load, number: int):
        super().__init__(load, f"t{number}", number // load.shards % len(load.addresses))
        self.number, self.shard = number, number % load.shards
        self.mine: list[Still] = []
        # Above what spenders have. Those of other shards are left out.
        self.numbers = (id for id in range((number + 1) << 24, (number + 2) << 24) if shard_of(id, load.shards) == self.shard)

    async def open(self) -> None:
        for _ in range(self.load.accounts):
            await self.create()

    async def create(self) -> None:
        account = Still(next(self.numbers), 0)
        order = Order(account.account, self.key(), "create", balance=STILL_BALANCE + self.random.randrange(AMOUNT_MAX))
        told = await self.order(order)
        if told is not None:
            self.note(account.follows(order, *told[:2]))
            self.mine.append(account)
            self.load.still.append(account)

    async def work(self) -> None:
        interval = self.load.tellers / self.load.rate
        # Each begins at another moment of the first interval.
        next_at = time.monotonic() + interval * self.random.random()
        while not self.load.stopping.is_set() and self.mine:
            await self.one(self.random.choice(self.mine))
            # Who waited for an answer does not hurry afterwards.
            next_at = max(next_at + interval, time.monotonic())
            await asyncio.sleep(next_at - time.monotonic())

    async def one(self, account: Still) -> None:
        kind = self.random.random()
        if kind < 0.10:
            answer = await self.read(account.account)
            return self.note(account.reads(answer) if answer else "")
        if kind < 0.12:
            return await self.create()
        amount = self.random.randrange(1, AMOUNT_MAX)
        if kind < 0.16:
            order = Order(account.account, self.key(), "update_spending_velocity", velocity=0)
        elif kind < 0.20:
            order = Order(account.account, self.key(), "withdraw", amount=account.balance + amount)
        else:
            order = Order(account.account, self.key(), "add_money" if kind < 0.60 else "withdraw", amount=amount)
        told = await self.order(order)
        if told is None:
            # Nobody knows what it has.
            self.mine.remove(account)
            self.load.still.remove(account)
        else:
            self.note(account.follows(order, *told[:2]))

    def note(self, wrong: str) -> None:
        if wrong:
            self.load.wrong.append(wrong)


class Spender(Client):
    """Has one account that spends by the second: lets it run dry and pays when the order was answered, or pays before, or at
    just about the moment of its end."""

    RACE_SECONDS = 0.03

    def __init__(self, load: Load, number: int):
        super().__init__(load, f"s{number}", number % len(load.addresses))
        self.account = Spending(1 + number)
        # The order of the present version is known to be delivered, so nothing can cancel it any more.
        self.is_answered = False

    async def open(self) -> None:
        # Spread, so that not all end in the same seconds.
        await self.pay("create", self.random.uniform(self.load.life[0], sum(self.load.life)))
        if self.account.versions:
            self.load.spending.append(self.account)

    async def work(self) -> None:
        alive = bool(self.account.versions)
        while alive and not self.load.stopping.is_set():
            kind = self.random.random()
            if kind < 0.6:
                await self.until(0.05)
                alive = await self.wait_for_order()
            elif kind < 0.8:
                await self.until(-self.random.uniform(0.3, 2))
            else:
                await self.until(self.random.uniform(-1, 1) * self.RACE_SECONDS)
            if alive and not self.load.stopping.is_set():
                alive = await self.pay("add_money", self.a_life())
        if not alive and self.account in self.load.spending:
            self.load.spending.remove(self.account)

    def a_life(self) -> float:
        return self.random.uniform(*self.load.life)

    async def until(self, seconds: float) -> None:
        """Before (below zero) or after the end."""
        await self.load.pause(self.account.depletes_at / MICROS + seconds - time.time())

    async def pay(self, procedure: str, seconds: float) -> bool:
        micros, account = int(seconds * MICROS), self.account
        if procedure == "create":
            order = Order(account.account, self.key(), procedure, balance=micros, velocity=Spending.VELOCITY)
        else:
            order = Order(account.account, self.key(), procedure, amount=micros)
        version, known = account.version, self.is_answered
        told = await self.order(order)
        if told is None:
            return False
        wrong = account.follows(order, *told)
        if wrong:
            self.load.wrong.append(wrong)
        if account.version > version and not known:
            account.versions[version].raced = True
        self.is_answered = False
        return True

    async def wait_for_order(self) -> bool:
        while not self.load.stopping.is_set():
            answer = await self.read(self.account.account)
            if not isinstance(answer, Shown):
                self.load.wrong.append(f"account {self.account.account}: {answer}")
                return False
            if answer.version != self.account.version:
                self.load.wrong.append(f"account {self.account.account} at version {self.account.version}: {answer}")
            if answer.overrun is not None:
                self.is_answered = True
                return True
            await self.load.pause(self.random.uniform(0.2, 0.6))
        return True


# ------------------------------------------------------------------------------------------------------------- afterwards


@dataclasses.dataclass
class Audit:
    balances_wrong: list[str]
    replays: int
    replays_wrong: list[str]


def audit(load: Load, doors: list[str]) -> Audit:
    """Everything that was acknowledged, read back: balances, then each key again, then balances again, for a key that was
    forgotten would be done now."""
    return asyncio.run(read_back(load, doors))


async def read_back(load: Load, doors: list[str]) -> Audit:
    clients = [Client(load, f"audit{number}", number % len(doors)) for number in range(4)]
    load.doors = [Door(address) for address in doors]
    balances = await read_balances(load, clients)
    places = range(0, len(load.told), REPLAY_AT_ONCE)
    replays_wrong: list[str] = []

    async def replay(client: Client, mine: range) -> None:
        for place in mine:
            replays_wrong.extend(await replay_some(client, load.told[place : place + REPLAY_AT_ONCE]))

    await asyncio.gather(*(replay(one, places[number :: len(clients)]) for number, one in enumerate(clients)))
    again = await read_balances(load, clients)
    for door in load.doors:
        door.close()
    return Audit(balances + again, len(load.told), replays_wrong)


async def read_balances(load: Load, clients: list[Client]) -> list[str]:
    wrong: list[str] = []

    async def read(client: Client, accounts: list[Still]) -> None:
        for account in accounts:
            answer = await client.read(account.account)
            found = account.reads(answer) if answer else f"account {account.account} cannot be read"
            if found:
                wrong.append(found)

    await asyncio.gather(*(read(one, load.still[number :: len(clients)]) for number, one in enumerate(clients)))
    return wrong


async def replay_some(client: Client, told: list[Told]) -> list[str]:
    for _ in range(10):
        content = {"operations": [one.order.item() for one in told]}
        answered = await client.until_answered("POST", "/billing/v1/batch", content, client.key(), 0, BATCH_SECONDS)
        if answered and answered[0] == 200:
            results = answered[1]["results"]
            if not any(result["status"] in (503, 504, 508) for result in results):
                break
        await asyncio.sleep(1)
    else:
        return [f"{one.order}: the replay is not answered" for one in told]
    wrong = []
    for one, result in zip(told, results):
        answer = Shown.of(result["account"]) if "account" in result else result["problem"]["type"]
        if (result["status"], answer) != (one.status, one.answer):
            wrong.append(f"{one.order}: first {one.status} {one.answer}, now {result['status']} {answer}")
    return wrong
