"""The receiver of orders as a child process, and what it wrote down."""

import sys

import processes
from fleet import fetch
from ledger import Arrival
from scratch import Scratch, start

PROGRAM = __file__.replace("orders.py", "receiver.py")


class Orders:
    """`with Orders(scratch) as orders:` listens; `address` is the webhook's."""

    def __init__(self, scratch: Scratch):
        self.directory = scratch.make(f"receiver-{len(scratch.ports)}")
        self.port, self.control = scratch.port(), scratch.port()
        self.file, self.log = self.directory / "orders", self.directory / "receiver.log"

    def __enter__(self) -> "Orders":
        command = [sys.executable, PROGRAM, str(self.port), str(self.control), str(self.file)]
        self.child = start(command, self.log, self.directory)
        processes.wait_for_port(self.control, self.child, self.log)
        return self

    def __exit__(self, *_) -> None:
        processes.stop(self.child)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set_mode(self, mode: str) -> None:
        fetch(f"http://127.0.0.1:{self.control}/mode/{mode}")

    def arrivals(self) -> list[Arrival]:
        """All so far; a line that is being written is left out."""
        text = self.file.read_text()
        found = []
        for line in text[: text.rfind("\n") + 1].splitlines():
            at, node, account, version, status = line.split()
            found.append(Arrival(int(at), node, int(account), int(version), int(status)))
        return found
