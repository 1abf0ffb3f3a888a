#!/usr/bin/env python3
"""Tarantool's connector for Python, a client nobody here wrote, against the IPROTO door of billing. Prints one line of JSON for
each thing it tried.

    connector.py 127.0.0.1:3301 FIRST_ID [USER PASSWORD]
"""

import json
import sys

import tarantool

SECONDS_MAX = 20


def tell(what: str, good: bool, figure: object) -> None:
    print(json.dumps({"what": what, "good": bool(good), "figure": str(figure)}), flush=True)


def same(what: str, given: object, expected: object) -> None:
    tell(what, given == expected, given if given == expected else f"{given}, expected {expected}")


def refused(what: str, code: int, word: str, ask) -> None:
    """It must be the connector's own exception, with Tarantool's code."""
    try:
        tell(what, False, f"{ask()} instead of an error")
    except tarantool.DatabaseError as error:
        # While it connects it wraps the error in another one.
        inner = error.args[0]
        told = inner.args if isinstance(inner, tarantool.DatabaseError) else error.args
        tell(what, told[0] == code and word in told[1], told)


def data(response) -> list:
    return list(response.data)


def connect(address: str, **options):
    host, port = address.rsplit(":", 1)
    return tarantool.Connection(host, int(port), socket_timeout=SECONDS_MAX, **options)


def procedures(client, account: int) -> None:
    call = lambda *what: data(client.call(*what))  # noqa: E731
    balance = lambda: call("get", account)[0][1]  # noqa: E731
    same("insert_data", call("insert_data"), [True])
    same("insert", data(client.space("accounts").insert((account, 1000, 0))), [[account, 1000, 0]])
    same("get", call("get", account), [[account, 1000, 0]])
    same("add_money", (call("add_money", account, 500), balance()), ([True], 1500))
    keyed = [call("add_money", account, 1, f"key-{account}") for _ in range(2)]
    same("add_money twice with one key", (keyed, balance()), ([[True], [True]], 1501))
    refused("that key with another amount", 32, "key-reused", lambda: call("add_money", account, 2, f"key-{account}"))
    same("withdraw", (call("withdraw", account, 501), balance()), ([True], 1000))
    refused("more than there is", 32, "insufficient-funds", lambda: call("withdraw", account, 1001))
    same("which changed nothing", balance(), 1000)
    same("update_spending_velocity", (call("update_spending_velocity", account, 7), call("get", account)[0][2]), ([True], 7))
    same("and back", (call("update_spending_velocity", account, 0), call("get", account)[0][2]), ([True], 0))
    refused("get of nobody", 32, "unknown-account", lambda: call("get", account + 10**12))
    refused("an amount of 0", 1, "amount is 0", lambda: call("add_money", account, 0))
    refused("an amount that is no integer", 1, "an id, an amount", lambda: call("add_money", account, 0.5))
    refused("a procedure that is not there", 33, "not defined", lambda: call("drop_all"))
    refused("EVAL", 48, "Unknown request", lambda: client.eval("return 1"))
    refused("SQL", 48, "Unknown request", lambda: client.execute("SELECT 1"))


def space(client, account: int) -> None:
    accounts = client.space("accounts")
    refused("insert of one that is there", 3, "account-exists", lambda: accounts.insert((account, 1, 0)))
    refused("insert of half a tuple", 1, "[id, balance, velocity]", lambda: accounts.insert((account,)))
    refused("delete", 48, "Unknown request", lambda: accounts.delete(account))
    same("select by id", [row[0] for row in data(accounts.select(account))], [account])
    same("select of nobody", data(accounts.select(account + 10**12)), [])
    same("select by the index's name", [row[0] for row in data(accounts.select(account, index="primary"))], [account])
    everyone = [row[0] for row in data(accounts.select())]
    good = everyone == sorted(set(everyone)) and {*range(1, 11), account} <= set(everyone)
    tell("select of all", good, f"{len(everyone)} tuples" if good else everyone)
    page = [row[0] for row in data(accounts.select(limit=3, offset=2))]
    same("select with limit and offset", page, everyone[2:5])
    beyond = [row[0] for row in data(accounts.select(5, iterator=6, limit=2))]
    same("select beyond an id", beyond, [one for one in everyone if one > 5][:2])
    # The connector itself finds that out, from the spaces it is shown.
    refused("a space that is not there", 0, "no space", lambda: client.space("nowhere").select())
    refused("an index that is not there", 0, "no index", lambda: accounts.select(1, index="nowhere"))


def main() -> None:
    address, account, credentials = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    tell("version", True, tarantool.__version__)
    options = {}
    if credentials:
        user, password = credentials
        options = {"user": user, "password": password}
        refused("call without a login", 42, "log in", lambda: connect(address).call("insert_data"))
        for what, wrong in [("a wrong password", (user, "wrong")), ("a name that is not there", ("nobody", password))]:
            refused(what, 47, "not found", lambda: connect(address, user=wrong[0], password=wrong[1]))
    client = connect(address, **options)
    tell("ping", client.ping() > 0, "answered")
    procedures(client, account)
    space(client, account)
    tell("ping after all errors", client.ping() > 0, "answered")
    client.close()
    old = connect(address, call_16=True, **options)
    same("the old CALL wraps what is returned", data(old.call("add_money", account, 1)), [[True]])
    old.close()


if __name__ == "__main__":
    main()
