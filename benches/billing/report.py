"""Tables and verdicts from the figures of a run. Knows no server."""

import math

# Of BILLING, in the same run: operations a second beside Tarantool with fsync.
POSTGRES_RATIO, POSTGRES_STRETCH, EMBEDDED_RATIO = 1.5, 3.0, 3.0
CPU_US_MAX = 5.0
ACCOUNT_BYTES_MAX = 60.0
DELAY_MS_MAX = 10.0
BEYOND_COMMIT_MS = 5.0


def verdicts(record: dict) -> list[dict]:
    found = []

    def judge(what: str, bound: str, figure: str, good: bool) -> None:
        found.append({"what": what, "bound": bound, "figure": figure, "good": good})

    if "throughput" in record:
        systems = record["throughput"]["systems"]
        for name, least in (("forefront postgres", POSTGRES_RATIO), ("forefront embedded", EMBEDDED_RATIO)):
            ratio = systems[name]["to_tarantool_fsync"]
            stretch = f" (stretch {POSTGRES_STRETCH:g})" if least == POSTGRES_RATIO else ""
            judge(f"{name}, 512 outstanding", f">= {least:g} x Tarantool fsync{stretch}", f"{ratio:.2f} x", ratio >= least)
        for name in ("forefront embedded", "forefront postgres"):
            cpu = sum(systems[name]["outstanding"]["512"]["cpu_us"])
            judge(f"{name}, CPU per operation", f"<= {CPU_US_MAX:g} µs", f"{cpu:.2f} µs", cpu <= CPU_US_MAX)
        for name in ("forefront embedded", "forefront postgres"):
            bytes = systems[name]["memory_bytes"]["account"]
            bound = f"<= {ACCOUNT_BYTES_MAX:g} bytes"
            judge(f"{name}, account before keys", bound, f"{bytes:.0f} bytes", bytes <= ACCOUNT_BYTES_MAX)
    if "depletion" in record:
        cells = record["depletion"]["cells"]
        most = max(cell["accounts"] for cell in cells)
        for cell in cells:
            if cell["accounts"] != most or not cell["system"].startswith("forefront"):
                continue
            bound = DELAY_MS_MAX
            if cell["load"] and cell["system"] == "forefront postgres":
                bound = cell["commit_p99_ms"] + BEYOND_COMMIT_MS
            what = f"{cell['system']}, order after depletion, p99, {most} accounts, {busy(cell)}"
            judge(what, f"<= {bound:.1f} ms", ms(cell["p99_ms"]), cell["p99_ms"] <= bound and not cell["early"])
    return found


def tables(record: dict) -> str:
    parts = []
    if "throughput" in record:
        parts.append(throughput(record["throughput"]))
    if "depletion" in record:
        parts.append(delays(record["depletion"]))
    rows = [[one["what"], one["bound"], one["figure"], "ok" if one["good"] else "MISSED"] for one in record["verdicts"]]
    parts.append(table(["target", "bound", "figure", "verdict"], rows))
    return "\n".join(parts)


def throughput(found: dict) -> str:
    rows = []
    for name, one in found["systems"].items():
        busy, alone = one["outstanding"]["512"], one["outstanding"]["1"]
        memory = one["memory_bytes"]
        rows.append([
            name,
            f"{busy['per_second'] / 1000:.0f}k",
            f"{busy['sustained'] / 1000:.0f}k",
            f"{one['to_tarantool_fsync']:.2f}",
            f"{busy['p50_ms']:.1f} / {busy['p99_ms']:.1f}",
            " + ".join(f"{us:.1f}" for us in busy["cpu_us"]),
            f"{alone['per_second']:.0f}",
            f"{alone['p50_ms']:.2f} / {alone['p99_ms']:.2f}",
            f"{memory['account']:.0f} + {memory['key']:.0f}" if memory else "",
        ])
    head = ["", "operations/s", "with the ledger whole", "to Tarantool fsync", "p50 / p99 ms", "CPU µs", "one at a time: operations/s", "p50 / p99 ms"]
    head.append("bytes per account + per operation kept")
    return f"{found['machine']}; {found['accounts']} accounts\n\n" + table(head, rows)


def delays(found: dict) -> str:
    rows = []
    for cell in found["cells"]:
        about = "about " if cell["computed"] else ""
        figures = [f"{about}{ms(cell[name])}" for name in ("p50_ms", "p99_ms", "max_ms")]
        rows.append([cell["system"], str(cell["accounts"]), busy(cell), *figures, str(cell["missing"] or "")])
    return f"{found['machine']}\n\n" + table(["", "accounts", "", "p50", "p99", "max", "not in time"], rows)


def depletion_line(cell: dict) -> str:
    figures = ", ".join(f"{name} {ms(cell[f'{name}_ms'])}" for name in ("p50", "p99", "max"))
    rest = "; computed" if cell["computed"] else ""
    for name in ("missing", "early", "repeated"):
        rest += f"; {cell[name]} {name}" if cell.get(name) else ""
    if "commit_p99_ms" in cell:
        rest += f"; commit p99 {ms(cell['commit_p99_ms'])}"
    return f"{cell['system']:24} {cell['accounts']:8} {busy(cell):12} {figures}{rest}"


def busy(cell: dict) -> str:
    return f"at {cell['load']['rate'] / 1000:.0f}k/s" if cell["load"] else "idle"


def ms(value: float) -> str:
    if math.isinf(value):
        return "never"
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
