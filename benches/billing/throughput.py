"""Operations a second, their latencies, CPU per operation, and memory per account. All servers are up at once, and only one
is asked; the rounds are interleaved, so that a disturbance of the machine meets all."""

import statistics

import servers

WARM_ACCOUNTS = 1000


def prepare(server: servers.Server, accounts: int, remembered: bool) -> dict | None:
    """Creates the accounts. If `remembered`, tells bytes per account, with the keys of their creation, and per operation.

    As many operations come before as accounts are created, and as many after: buffers have grown by then, and what grows in
    steps has as many of them in either half. More would make forefront write a snapshot meanwhile.
    """
    server.grow(WARM_ACCOUNTS)
    operate = ["load", server.address, "--operations", accounts, "--accounts"]
    if not remembered:
        server.grow(accounts)
        server.settle()
        return None
    sizes = []
    steps = (
        lambda: server.client.run(*operate, WARM_ACCOUNTS),
        lambda: server.grow(accounts),
        lambda: server.client.run(*operate, accounts),
    )
    for step in steps:
        step()
        server.settle()
        sizes.append(server.rss())
    before, created, operated = sizes
    grown, key = (created - before) / (accounts - WARM_ACCOUNTS), (operated - created) / accounts
    return {"account_and_key": grown, "key": key, "account": grown - key}


def measure(server: servers.Server, seconds: float, outstanding: int) -> dict:
    """CPU is with what is done after the answers, until the ledger is whole; `sustained` is what that leaves a second."""
    before = server.cpu_ns()
    warm_up = min(1.0, seconds / 4)
    figures = server.client.run(*server.load_arguments(seconds, outstanding, "--warm-up-seconds", warm_up))
    figures["ledger_seconds"] = server.settle()
    figures["sustained"] = figures["operations"] / (figures["seconds"] + figures["ledger_seconds"])
    spent = [after - before for after, before in zip(server.cpu_ns(), before)]
    figures["cpu_us"] = [ns / figures["operations"] / 1000 for ns in spent]
    return figures


def rounds(systems: list[servers.Server], count: int, seconds: float, outstanding: int) -> dict[str, list[dict]]:
    measured: dict[str, list[dict]] = {system.name: [] for system in systems}
    for number in range(count):
        for at in range(len(systems)):
            system = systems[(at + number) % len(systems)]
            figures = measure(system, seconds, outstanding)
            measured[system.name].append(figures)
            cpu = " + ".join(f"{us:.1f}" for us in figures["cpu_us"])
            print(
                f"  {system.name:28} {outstanding:4} outstanding: {figures['per_second']:9.0f}/s, "
                f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms, CPU {cpu} µs, "
                f"ledger whole after {figures['ledger_seconds']:.1f} s",
                flush=True,
            )
    return measured


def summary(measured: list[dict]) -> dict:
    """The median of the rounds, figure by figure."""
    names = ("per_second", "sustained", "p50_ms", "p99_ms", "max_ms")
    of = {name: statistics.median(one[name] for one in measured) for name in names}
    return of | {"cpu_us": [statistics.median(part) for part in zip(*(one["cpu_us"] for one in measured))]}


def ratio(measured: dict[str, list[dict]], name: str, reference: str) -> float:
    """The median of the ratios round by round, since what slows one round down slows both."""
    pairs = zip(measured[name], measured[reference])
    return statistics.median(one["per_second"] / other["per_second"] for one, other in pairs)
