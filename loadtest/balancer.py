"""haproxy in front of the two nodes, for the tests in which one of them is lost or drained."""

import pathlib
import shutil

import processes
from fleet import Fleet

TEMPLATE = pathlib.Path(__file__).with_name("haproxy.cfg")


class Balancer:
    """`with Balancer(fleet, scratch) as base:` gives the address to send the load to. It carries TCP, so the same does for
    HTTP and (`secure`) HTTPS."""

    def __init__(self, fleet: Fleet, scratch: pathlib.Path, secure: bool = False):
        self.fleet, self.scratch, self.secure = fleet, scratch, secure

    def __enter__(self) -> str:
        program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")
        if not program:
            raise SystemExit("haproxy is missing: run `make setup-load`")
        port = processes.free_port()
        names = {"PORT": port}
        for letter, node in zip("AB", self.fleet.nodes):
            names[f"NODE_{letter}"] = node.https if self.secure else node.http
            names[f"HEALTH_{letter}"] = node.health.rsplit(":", 1)[1]
        text = TEMPLATE.read_text()
        for name, value in names.items():
            text = text.replace(f"@{name}@", str(value))
        config, log = self.scratch / "haproxy.cfg", self.scratch / "haproxy.log"
        config.write_text(text)
        self.child = processes.start([program, "-db", "-f", str(config)], log)
        processes.wait_for_port(port, self.child, log)
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{port}"

    def __exit__(self, *_) -> None:
        processes.stop(self.child)
