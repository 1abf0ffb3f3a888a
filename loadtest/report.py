"""The table: requirement, what was done, bound, figure, verdict."""

import json
import os
import pathlib
import time

import processes

NOTES_SHOWN = 40


class Report:
    def __init__(self, name: str):
        self.name = name
        self.rows: list[dict] = []
        self.notes: list[str] = []
        self.load_before = os.getloadavg()

    def add(self, requirement: str, what: str, bound: str, figure: str, good: bool | None) -> None:
        """`good` None: a figure without a bound."""
        row = {"requirement": requirement, "what": what, "bound": bound, "figure": figure, "good": good}
        self.rows.append(row)
        print("  " + self.line(row), flush=True)

    def note(self, text: str) -> None:
        """One request worth looking at; the whole list is in the JSON file."""
        self.notes.append(text)

    @staticmethod
    def verdict(row: dict) -> str:
        return {True: "ok", False: "MISSED", None: ""}[row["good"]]

    def line(self, row: dict, widths: tuple[int, int, int] = (54, 26, 40)) -> str:
        cells = [f"{row[name]:{width}}" for name, width in zip(("what", "bound", "figure"), widths)]
        return f"{row['requirement']:4} {'  '.join(cells)}  {self.verdict(row)}".rstrip()

    def finish(self, directory: pathlib.Path) -> int:
        """Prints the whole table in the order of the requirements, keeps it as JSON, and returns the exit code."""
        header = {"requirement": "", "what": "what", "bound": "bound", "figure": "figure", "good": None}
        machine = processes.machine(self.load_before)
        widths = tuple(max(len(row[name]) for row in [header, *self.rows]) for name in ("what", "bound", "figure"))
        print(f"\n{machine}\n{self.line(header, widths)}  verdict\n" + "-" * (sum(widths) + 20))
        self.rows.sort(key=lambda row: int(row["requirement"][1:]))
        for row in self.rows:
            print(self.line(row, widths))
        if self.notes:
            print(f"\nRequests that failed or took more than 1 s (times from the fault): {len(self.notes)}")
            for text in self.notes[:NOTES_SHOWN]:
                print("  " + text)
        judged = [row for row in self.rows if row["good"] is not None]
        missed = [row for row in judged if not row["good"]]
        print(f"\n{len(judged) - len(missed)} passed, {len(missed)} failed")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"name": self.name, "at": at, "machine": machine, "rows": self.rows, "requests": self.notes}
        (directory / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        return 1 if missed or not judged else 0
