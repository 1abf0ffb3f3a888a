"""Billing by clients that nobody here wrote: through the front over each version of HTTP, by Tarantool's connectors, and as
schemathesis reads its OpenAPI document."""

import contextlib
import json
import pathlib
import time
import urllib.error
import urllib.request

import processes
from clients import CURL, HERE, PYTHON, ROOT, VERSIONS, Answer, Http3, Table, bounded, curl

V1 = "/billing/v1"
DOCUMENT = ROOT / "src/billing/api/openapi.json"
USER = "billing"
PASSWORD = "not-a-secret-of-anybody"
TOKEN = "not-a-token-of-anybody"
READY_SECONDS = 30
# The newest connector, and one of before its first stable release; see setup.sh.
CONNECTORS = {"1.3.0": "", "0.7.1": str(ROOT / "target/interop/tarantool-0.7.1")}
SCHEMATHESIS = ROOT / "target/interop/schemathesis/bin/schemathesis"
# Keeps a run below a minute; what the phases before the fuzzing ask does not depend on it.
EXAMPLES_MAX = 60


# ---------------------------------------------------------------------------------------------------- through the front


def through_the_front(table: Table, bases: list[str]) -> None:
    """Every procedure over each protocol at one node; what it changed is looked at over the next protocol at the other one."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for base in bases:
            h3 = stack.enter_context(Http3(base))
            nodes.append(Front(base, h3))
        protocols = list(VERSIONS)
        for number, protocol in enumerate(protocols):
            other = protocols[(number + 1) % len(protocols)]
            Walk(table, protocol, number, lambda *what: nodes[0].ask(protocol, *what), lambda *what: nodes[1].ask(other, *what)).all()


class Front:
    def __init__(self, base: str, h3: Http3):
        self.base, self.h3 = base, h3

    def ask(self, protocol: str, method: str, path: str, body: object = None, key: str | None = None) -> Answer:
        text = None if body is None else json.dumps(body)
        fields = {} if key is None else {"idempotency-key": key}
        if protocol in CURL:
            answer = curl(self.base + V1 + path, protocol, method, text, fields)
        else:
            answer = self.h3.ask(method, V1 + path, text, fields)
        fresh = answer.fields.get("cache-control") == "no-store" and "age" not in answer.fields
        if answer.version != VERSIONS[protocol] or not fresh:
            # No status, so that whoever looks at it sees a failure.
            return Answer(0, answer.version, answer.fields, f"{answer.status}, cached or over another protocol: {answer.fields}")
        return answer


class Walk:
    """An account from its first to its last coin. `ask`: does; `look`: a GET elsewhere right afterwards."""

    def __init__(self, table: Table, protocol: str, number: int, ask, look):
        self.table, self.protocol, self.ask, self.look = table, protocol, ask, look
        self.id = 5000 + number
        self.of = f"/accounts/{self.id}"

    def add(self, what: str, answer: Answer, status: int, good: bool) -> None:
        good = answer.status == status and good
        self.table.add(f"billing over {self.protocol}: {what}", good, answer.status if good else f"{answer.status} {answer.content[:300]}")

    def sees(self, **expected) -> bool:
        """Is the account as it must be now, to the next who asks?"""
        seen = self.look("GET", self.of)
        told = seen.json() or {}
        return seen.status == 200 and all(told.get(name) == value for name, value in expected.items())

    def all(self) -> None:
        self.create()
        self.add_money()
        self.withdraw()
        self.velocity()
        self.many()
        self.refused()
        self.told()

    def create(self) -> None:
        created = self.ask("POST", "/accounts", {"id": self.id, "balance": 1000, "velocity": 0})
        good = created.fields.get("location") == V1 + self.of and self.sees(balance=1000, velocity=0, state="active", version=1)
        self.add("create, get", created, 201, good)

    def add_money(self) -> None:
        key = f"pay-{self.id}"
        added = self.ask("POST", self.of + "/add_money", {"amount": 500}, key)
        good = added.fields.get("idempotency-key") == key and (added.json() or {}).get("balance") == 1500
        self.add("add_money", added, 200, good and self.sees(balance=1500))
        again = self.ask("POST", self.of + "/add_money", {"amount": 500}, key)
        self.add("the same key again", again, 200, again.json() == added.json() and self.sees(balance=1500))
        reused = self.ask("POST", self.of + "/add_money", {"amount": 501}, key)
        self.add("the same key, another amount", reused, 409, kind(reused) == "key-reused" and self.sees(balance=1500))

    def withdraw(self) -> None:
        taken = self.ask("POST", self.of + "/withdraw", {"amount": 300})
        key = taken.fields.get("idempotency-key", "")
        # It is the front's: the id it gave to the request.
        good = bool(key) and key == taken.fields.get("x-request-id") and self.sees(balance=1200)
        self.add("withdraw, the front gave the key", taken, 200, good)
        again = self.ask("POST", self.of + "/withdraw", {"amount": 300}, key)
        self.add("withdraw again with that key", again, 200, again.json() == taken.json() and self.sees(balance=1200))

    def velocity(self) -> None:
        changed = self.ask("POST", self.of + "/update_spending_velocity", {"velocity": 1})
        ends = (changed.json() or {}).get("depletes_at")
        good = ends is not None and self.sees(velocity=1, depletes_at=ends)
        self.add("update_spending_velocity", changed, 200, good)
        stopped = self.ask("POST", self.of + "/update_spending_velocity", {"velocity": 0})
        self.add("update_spending_velocity to 0", stopped, 200, self.sees(velocity=0, depletes_at=None))

    def many(self) -> None:
        inserted = self.ask("POST", "/insert_data")
        users = [account["id"] for account in (inserted.json() or {}).get("accounts", [])]
        self.add("insert_data", inserted, 200, users == list(range(1, 11)))
        listed = self.ask("GET", f"/accounts?after={self.id - 1}&limit=1")
        page = listed.json() or {}
        good = [account["id"] for account in page.get("accounts", [])] == [self.id] and page.get("next") == self.id
        self.add("list", listed, 200, good)
        before = (self.look("GET", self.of).json() or {}).get("balance", 0)
        operations = [
            {"operation": "add_money", "id": self.id, "amount": 5},
            {"operation": "withdraw", "id": self.id, "amount": 3},
            {"operation": "withdraw", "id": self.id, "amount": 10**15},
            {"operation": "get", "id": self.id},
        ]
        for what in ("batch", "the same batch with its key"):
            done = self.ask("POST", "/batch", {"operations": operations}, f"batch-{self.id}")
            statuses = [one["status"] for one in (done.json() or {}).get("results", [])]
            self.add(what, done, 200, statuses == [200, 200, 422, 200] and self.sees(balance=before + 2))

    def refused(self) -> None:
        for what, method, path, body, status, word in [
            ("an account that is not there", "GET", "/accounts/4999", None, 404, "unknown-account"),
            ("an account that is there already", "POST", "/accounts", {"id": self.id, "balance": 1, "velocity": 1}, 409, "account-exists"),
            ("more than there is", "POST", self.of + "/withdraw", {"amount": 10**15}, 422, "insufficient-funds"),
            ("half a unit", "POST", self.of + "/withdraw", {"amount": 0.5}, 400, "malformed"),
            ("a path that is not there", "GET", "/nowhere", None, 404, "no-such-path"),
        ]:
            answer = self.ask(method, path, body)
            good = kind(answer) == word and answer.fields.get("content-type") == "application/problem+json"
            self.add(what, answer, status, good)

    def told(self) -> None:
        cluster = self.ask("GET", "/cluster")
        told = cluster.json() or {}
        self.add("cluster", cluster, 200, told.get("status") == "yellow" and told["buckets"]["available_rw"] == 1000)
        document = self.ask("GET", "/openapi.json")
        self.add("openapi.json", document, 200, document.json() == json.loads(DOCUMENT.read_text()))


def kind(answer: Answer) -> str:
    return str((answer.json() or {}).get("type", "")).rpartition(":")[2]


# --------------------------------------------------------------------------------------------------- a node of its own


class Node:
    """One billing node with an embedded journal, a token for HTTP and a user for IPROTO."""

    def __init__(self, binary: pathlib.Path, scratch: pathlib.Path):
        self.binary, self.directory = binary, scratch / "billing-node"
        self.port, self.iproto = processes.free_port(), f"127.0.0.1:{processes.free_port()}"
        self.base = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Node":
        self.directory.mkdir()
        quoted = lambda name: json.dumps(str(self.directory / name))  # noqa: E731
        (self.directory / "token").write_text(TOKEN)
        (self.directory / "users").write_text(f"{USER}:{PASSWORD}\n")
        config = self.directory / "billing.toml"
        config.write_text(
            f'[node]\nname = "interop"\nstate_dir = {quoted("")}\n\n'
            f'[listen]\nhttp = ["127.0.0.1:{self.port}"]\niproto = ["{self.iproto}"]\n'
            f"token_file = {quoted('token')}\niproto_users = {quoted('users')}\n\n"
            f'[journal]\nengine = "embedded"\npath = {quoted("journal")}\n'
        )
        self.log = self.directory / "log"
        self.child = processes.start([str(self.binary), "billing", "--config", str(config)], self.log)
        processes.wait_for_port(self.port, self.child, self.log, READY_SECONDS)
        deadline = time.monotonic() + READY_SECONDS
        while fetch(self.base + "/ping")[0] != 200:
            if time.monotonic() > deadline:
                raise SystemExit(f"the billing node is not able to take writes:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_) -> None:
        processes.stop(self.child)


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# ----------------------------------------------------------------------------------------------------------- connectors


def connectors(table: Table, scratch: pathlib.Path, address: str, user: str = "") -> None:
    for number, (version, path) in enumerate(CONNECTORS.items()):
        # Accounts of its own for each.
        command = [PYTHON, HERE / "connector.py", address, str(7000 + number), *([user, PASSWORD] if user else [])]
        code, said = bounded(command, scratch, "connector", PYTHONPATH=path)
        lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        who = f"tarantool {version}" + (" with a password" if user else "")
        for line in lines:
            table.add(f"{who}: {line['what']}", line["good"], line["figure"])
        if code or not lines or lines[0]["figure"] != version:
            table.add(who, False, f"exit code {code}: {said[-500:]}")


# ------------------------------------------------------------------------------------------------------------- document


def document(table: Table, scratch: pathlib.Path, node: Node, seed: int) -> None:
    """Whatever the document allows is asked, and some that it does not; every answer must be as it says."""
    url = node.base + V1 + "/openapi.json"
    schemathesis(table, scratch, node, "all checks", [url, "--checks", "all", "-n", EXAMPLES_MAX, "--seed", seed])
    # This node asks for a token; the document, which is of all nodes, says that one may.
    strict = json.loads(fetch(url)[1]) | {"security": [{"bearer": []}]}
    (scratch / "strict.json").write_text(json.dumps(strict))
    options = [scratch / "strict.json", "--checks", "ignored_auth", "--phases", "examples,coverage", "--seed", seed]
    schemathesis(table, scratch, node, "without the token, or with another", options)
    failures = [line for line in fetch(node.base + "/metrics")[1].decode().splitlines() if 'status="5' in line]
    table.add("no 5xx of all that", not failures, failures or "none")


def schemathesis(table: Table, scratch: pathlib.Path, node: Node, what: str, options: list) -> None:
    report = scratch / "schemathesis.json"
    report.unlink(missing_ok=True)
    command = [SCHEMATHESIS, "--config-file", HERE / "schemathesis.toml", "run", *options, "--url", node.base, "--no-color"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--report", "json", "--report-json-path", report]
    code, said = bounded(command, scratch, "schemathesis")
    told = json.loads(report.read_text()) if report.exists() else {}
    cases, tested = told.get("test_cases", {}), told.get("operations", {})
    good = code == 0 and cases.get("generated", 0) > 0 and tested.get("tested") == tested.get("total")
    figure = f"{cases.get('generated', 0)} requests to {tested.get('tested', 0)} operations, seed {told.get('seed')}"
    table.add(f"schemathesis, {what}", good, figure)
    if not good:
        print(said, flush=True)
