"""Accounts that are made to run dry at chosen instants, all at once if need be, and get no more money."""

import asyncio
import time

from ledger import MICROS, Order, Shown, Spending
from wire import Answer, Door, NoAnswer

AT_ONCE = 1000  # As many operations as a batch may have.
BATCH_SECONDS = 15
TRIES = 10


def make(address: str, first: int, ends_at: list[int]) -> list[Spending]:
    """With ids from `first` on. Instants are microseconds since the epoch, met but for the time that making an account takes."""
    return asyncio.run(make_all(Door(address), first, ends_at))


async def make_all(door: Door, first: int, ends_at: list[int]) -> list[Spending]:
    accounts = []
    for place in range(0, len(ends_at), AT_ONCE):
        now = int(time.time() * MICROS)
        orders = [
            Order(first + place + number, "dry", "create", balance=max(1, at - now), velocity=Spending.VELOCITY)
            for number, at in enumerate(ends_at[place : place + AT_ONCE])
        ]
        answer = await ask(door, {"operations": [order.item() for order in orders]}, f"dry-{first + place}")
        for order, result in zip(orders, answer.body["results"], strict=True):
            account = Spending(order.account)
            shown = Shown.of(result["account"]) if "account" in result else str(result)
            if wrong := account.follows(order, result["status"], shown, now, int(time.time() * MICROS)):
                raise SystemExit(wrong)
            accounts.append(account)
    door.close()
    return accounts


async def ask(door: Door, content: dict, key: str) -> Answer:
    told = "no answer"
    for _ in range(TRIES):
        try:
            answer = await door.ask("POST", "/billing/v1/batch", content, key, BATCH_SECONDS)
        except NoAnswer:
            continue
        if answer.status == 200 and not any(result["status"] in (503, 504, 508) for result in answer.body["results"]):
            return answer
        told = f"{answer.status} {answer.body}"[:500]
        await asyncio.sleep(0.2)
    raise SystemExit(f"accounts cannot be made: {told}")
