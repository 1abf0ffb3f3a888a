"""What accounts must be like, by what was asked and answered. Pure: each account has one client, which asks one thing at a
time, so every answer follows from the one before, and one that does not tells what was lost or done twice."""

import collections
import dataclasses
import itertools

BUCKETS = 1000
MICROS = 1_000_000
RECENT = 64  # Operations that a mistake is looked for in.


def bucket_of(account: int) -> int:
    """As the nodes have it: one step of SplitMix64."""
    mask = (1 << 64) - 1
    z = (account + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) % BUCKETS


def shard_of(account: int, shards: int) -> int:
    """By the bucket map of a first start."""
    return bucket_of(account) % shards


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """An account in an answer."""

    balance: int
    velocity: int
    state: str
    version: int
    depletes_at: int | None
    overrun: int | None

    @staticmethod
    def of(body: dict) -> "Shown":
        names = ("balance", "velocity", "state", "version", "depletes_at", "overrun")
        return Shown(*(body[name] for name in names))


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """An operation as it is asked, again and again under the same key, until it is answered."""

    account: int
    key: str
    procedure: str
    amount: int = 0
    balance: int = 0
    velocity: int = 0

    def arguments(self) -> dict:
        match self.procedure:
            case "create":
                return {"balance": self.balance, "velocity": self.velocity}
            case "update_spending_velocity":
                return {"velocity": self.velocity}
            case _:
                return {"amount": self.amount}

    def request(self) -> tuple[str, dict]:
        """Path and content."""
        if self.procedure == "create":
            return "/billing/v1/accounts", {"id": self.account, **self.arguments()}
        return f"/billing/v1/accounts/{self.account}/{self.procedure}", self.arguments()

    def item(self) -> dict:
        """Of a batch."""
        return {"operation": self.procedure, "id": self.account, "key": self.key, **self.arguments()}


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """An order with its first answer: an account, or the type of a problem."""

    order: Order
    status: int
    answer: Shown | str


def answer_of(body: dict) -> Shown | str:
    return body["type"] if "type" in body else Shown.of(body)


REFUSED = "urn:problem-type:forefront:billing:insufficient-funds"


class Still:
    """An account that spends nothing: its balance is what was put in less what was taken out."""

    def __init__(self, account: int, balance: int):
        self.account, self.balance = account, balance
        self.deltas: collections.deque[int] = collections.deque(maxlen=RECENT)

    def follows(self, order: Order, status: int, answer: Shown | str) -> str:
        """Takes an answer; "" if it follows from the one before, else what is wrong. Goes on from what was answered."""
        delta = {"add_money": order.amount, "withdraw": -order.amount}.get(order.procedure, 0)
        if order.procedure == "withdraw" and order.amount > self.balance:
            return "" if (status, answer) == (422, REFUSED) else f"{order} of {self.balance}: {status} {answer}"
        if not isinstance(answer, Shown) or status != (201 if order.procedure == "create" else 200):
            return f"{order} of {self.balance}: {status} {answer}"
        expected = order.balance if order.procedure == "create" else self.balance + delta
        wrong = "" if answer.balance == expected else self.explain(answer.balance - expected, order, answer)
        self.deltas.append(delta)
        self.balance = answer.balance
        return wrong or self.odd(answer)

    def reads(self, answer: Shown | str) -> str:
        """The same of a read, which may show nothing older than the last answer."""
        if not isinstance(answer, Shown):
            return f"account {self.account} with {self.balance}: {answer}"
        if answer.balance != self.balance:
            wrong = self.explain(answer.balance - self.balance, "read", answer)
            return wrong
        return self.odd(answer)

    def odd(self, answer: Shown) -> str:
        good = (answer.velocity, answer.state, answer.version, answer.depletes_at) == (0, "active", 1, None)
        return "" if good else f"account {self.account} is odd: {answer}"

    def explain(self, difference: int, order: object, answer: Shown) -> str:
        """Amounts are chosen so that no few of them add up to another by chance."""
        lost = list(itertools.accumulate(reversed(self.deltas)))
        if -difference in lost:
            what = f"the last {lost.index(-difference) + 1} operations are lost"
        elif -difference in self.deltas:
            what = "an operation is lost"
        elif difference in self.deltas or isinstance(order, Order) and difference in (order.amount, -order.amount):
            what = "an operation is applied twice"
        else:
            what = "unexplained"
        return f"account {self.account}: {what}: {order}: {answer}, off by {difference}"


@dataclasses.dataclass(slots=True)
class Version:
    """A life of an account, from money to none."""

    depletes_at: int
    """Its last known end, if no more money comes."""
    raced: bool = False
    """Money came about when it ended, so that its order may have been cancelled."""


class Spending:
    """An account that spends a micro-unit in each microsecond, so that money is time: what is added moves the end by as much."""

    VELOCITY = MICROS

    def __init__(self, account: int):
        self.account = account
        self.versions: dict[int, Version] = {}
        self.version = 1

    @property
    def depletes_at(self) -> int:
        return self.versions[self.version].depletes_at

    def follows(self, order: Order, status: int, answer: Shown | str, asked_at: int, answered_at: int) -> str:
        """Times are in microseconds since the epoch: first asked, last answered."""
        if not isinstance(answer, Shown) or status not in (200, 201) or answer.depletes_at is None:
            return f"{order}: {status} {answer}"
        ends_at = answer.depletes_at
        # When the money must have come, if it came to an account with none.
        funded_at = ends_at - (order.balance or order.amount)
        just_now = asked_at <= funded_at <= answered_at
        if order.procedure == "create":
            self.versions[1] = Version(ends_at)
            return "" if just_now and answer.version == 1 else f"{order}, asked {asked_at}, answered {answered_at}: {answer}"
        before = self.depletes_at
        prolonged = answer.version == self.version and ends_at == before + order.amount
        spared = answer.version == self.version and just_now and funded_at >= before
        reopened = answer.version == self.version + 1 and just_now and funded_at >= before
        if not (prolonged or spared or reopened):
            wrong = f"{order}, asked {asked_at}, answered {answered_at}, ended {before} at version {self.version}: {answer}"
        else:
            wrong = ""
        self.version = answer.version
        self.versions.setdefault(self.version, Version(ends_at)).depletes_at = ends_at
        return wrong


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """An order to switch off, as the receiver saw it."""

    at: int
    """Microseconds since the epoch."""
    node: str
    account: int
    version: int
    status: int
    """What the receiver answered; 0 if nothing."""


@dataclasses.dataclass
class OrdersJudged:
    ended: int = 0
    """Versions that must have an order."""
    missed: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    delivered: int = 0
    copies: int = 0
    early: list[Arrival] = dataclasses.field(default_factory=list)
    """Of a version that had money left by what was answered, or that never was."""
    delays_us: list[int] = dataclasses.field(default_factory=list)
    """From the end of the money to the first arrival that was answered with 2xx."""


def judge_orders(accounts: list[Spending], arrivals: list[Arrival], until: int) -> OrdersJudged:
    """`until`: ends later than this need no order yet."""
    judged = OrdersJudged()
    versions = {(one.account, number): version for one in accounts for number, version in one.versions.items()}
    delivered: dict[tuple[int, int], int] = {}
    for one in arrivals:
        name = (one.account, one.version)
        if name not in versions or one.at < versions[name].depletes_at:
            judged.early.append(one)
        elif 200 <= one.status < 300:
            if name in delivered:
                judged.copies += 1
            else:
                delivered[name] = one.at
                judged.delays_us.append(one.at - versions[name].depletes_at)
    judged.delivered = len(delivered)
    for name, version in versions.items():
        if version.depletes_at <= until and not version.raced:
            judged.ended += 1
            if name not in delivered:
                judged.missed.append(name)
    return judged


def without_lease(arrivals: list[Arrival], taken: list, shards: int, slack_us: int) -> list[Arrival]:
    """Orders by a node that another had taken the shard from, or that never had it. `taken`: who took which shard, with `at` in
    seconds, by time; logs tell that a little later than it is so."""
    terms: dict[int, list[tuple[float, float, str]]] = {shard: [] for shard in range(shards)}
    for shard, of_shard in terms.items():
        begun = [one for one in taken if one.shard == shard]
        for one, following in itertools.zip_longest(begun, begun[1:]):
            until = following.at * MICROS + slack_us if following else float("inf")
            of_shard.append((one.at * MICROS - slack_us, until, one.node))

    def has_lease(arrival: Arrival) -> bool:
        of_shard = terms[shard_of(arrival.account, shards)]
        return any(node == arrival.node and begin <= arrival.at <= until for begin, until, node in of_shard)

    return [one for one in arrivals if not has_lease(one)]
