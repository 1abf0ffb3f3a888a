#!/usr/bin/env python3
"""Clients that nobody here wrote, against `forefront dev`: curl over HTTP/1.1 and HTTP/2, OpenSSL by Python's ssl, aioquic and
headless Chromium over HTTP/3; Tarantool's connector for Python and schemathesis against billing. Prints a table, and as its
last line `N passed, N failed`.

    run.py --binary target/release/forefront

Exit code: 0 all passed, 1 one failed, or the run itself did. `setup.sh` installs what it needs.
"""

import argparse
import base64
import hashlib
import json
import pathlib
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import tomllib

from clients import CURL, HERE, PYTHON, ROOT, SECONDS_MAX, VERSIONS, Table, bounded, curl
import billing
import processes
from fleet import Fleet

SESSION = '{"start_time": "2024-05-06T07:08:09Z", "customer_id": 7, "movie_id": 7}'
# What is asked of each shipped route. A route without an entry is a failure: it was added without a look at R9.
ASKED = {
    "index": ("GET", "/", None),
    "ping": ("GET", "/ping", None),
    "config": ("GET", "/config", None),
    "long_dummy": ("GET", "/long_dummy", None),
    "db_dummy": ("GET", "/db_dummy", None),
    "operation": ("POST", "/operation", '{"operation": 7}'),
    "movie_list": ("GET", "/api/movie", None),
    "customer_list": ("GET", "/api/customer", None),
    "session_list": ("GET", "/api/session", None),
    "movie": ("GET", "/api/movie/7", None),
    "customer": ("GET", "/api/customer/7", None),
    "session_get": ("GET", "/api/session/{id}", None),
    "session_create": ("POST", "/api/session", SESSION),
    "session_delete": ("DELETE", "/api/session/{id}", None),
    "billing": ("GET", "/billing/v1/accounts", None),
    "billing_root": ("GET", "/billing", None),
    "rest": ("GET", "/nowhere", None),
}
# What the service behind the route answers where it is no 200.
STATUS = {"rest": 404, "billing_root": 404}
def routes(table: Table, http: str, https: str, session: str) -> None:
    """R9: every shipped route over both schemes; no redirect, no Strict-Transport-Security."""
    with open(ROOT / "config/proxy.toml", "rb") as file:
        names = [route["name"] for route in tomllib.load(file)["route"]]
    for name in names:
        if name not in ASKED:
            table.add(f"route {name}", False, "tests/interop/run.py does not know it")
            continue
        method, path, body = ASKED[name]
        expected = STATUS.get(name, 200)
        for scheme, base in (("https", https), ("http", http)):
            for protocol in CURL if scheme == "https" else ["http/1.1"]:
                if "{id}" in path:
                    # Each deletes a session of its own.
                    session = new_session(http)
                answer = curl(base + path.replace("{id}", session), protocol, method, body)
                told = answer.fields.get("alt-svc", "")
                good = answer.status == expected and not {"strict-transport-security", "location"} & set(answer.fields)
                good = good and told.startswith('h3=":') == (scheme == "https")
                figure = f"{answer.status}, HTTP/{answer.version}, Alt-Svc: {told or 'none'}"
                table.add(f"{method} {path} over {scheme}, {protocol}", good, figure)


def new_session(http: str) -> str:
    command = ["curl", "-s", "-m", "40", "-H", "Content-Type: application/json", "--data", SESSION, http + "/api/session"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX).stdout
    return str(json.loads(answer)["id"])


def key_hash(certificate: str) -> str:
    """Base64 of the SHA-256 of a certificate's key, as Chromium takes it."""
    options = {"capture_output": True, "timeout": SECONDS_MAX, "check": True}
    key = subprocess.run(["openssl", "x509", "-noout", "-pubkey"], input=certificate.encode(), **options).stdout
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=key, **options).stdout
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def tls(table: Table, ports: list[int]) -> str:
    """One certificate on both nodes, and a session of one resumed on the other. The certificate, PEM."""
    certificates = [ssl.get_server_certificate(("localhost", port), timeout=20) for port in ports]
    same = len(set(certificates)) == 1
    table.add("one certificate on both nodes", same, hashlib.sha256(certificates[0].encode()).hexdigest()[:16])
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["http/1.1"])
        session, reused = None, []
        for port in (ports[0], *ports):
            with socket.create_connection(("localhost", port), 20) as plain:
                with context.wrap_socket(plain, server_hostname="localhost", session=session) as secured:
                    secured.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    while secured.recv(65536):
                        pass
                    reused.append(secured.session_reused)
                    session = secured.session
        good = reused == [False, True, True]
        table.add(f"{version.name}: new, resumed on the same node, on the other", good, reused)
    return certificates[0]


def aioquic(table: Table, scratch: pathlib.Path, bases: list[str]) -> None:
    urls = [bases[0] + "/", bases[0] + "/long_dummy", bases[1] + "/long_dummy", bases[1] + "/ping"]
    code, said = bounded([PYTHON, HERE / "aioquic_ask.py", *urls], scratch, "aioquic")
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if code or len(answers) != len(urls):
        table.add("aioquic", False, f"exit code {code}: {said[-300:]}")
    for number, (url, answer) in enumerate(zip(urls, answers)):
        good = answer["protocol"] == "h3" and answer["status"] == 200 and answer["resumed"] == (number > 0)
        resumed = "a resumed session" if answer["resumed"] else "a new session"
        table.add(f"aioquic GET {url}", good, f"{answer['status']} over {answer['protocol']}, {resumed}, {answer['bytes']} bytes")


def browser(table: Table, scratch: pathlib.Path, base: str, spki: str) -> None:
    command = ["node", HERE / "browser.mjs", base + "/", spki]
    code, said = bounded(command, scratch, "browser", MODULES=str(ROOT / "target/interop"))
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    figure = f"{told[0]['status']} over {told[0]['protocol']}, Chromium {told[0]['browser']}" if told else said[-300:]
    table.add(f"Chromium loads {base}/", code == 0 and bool(told), figure)


def addresses(fleet: Fleet) -> dict:
    for line in fleet.log.read_text(errors="replace").splitlines():
        if line.startswith('{"') and '"nodes"' in line:
            return json.loads(line)
    raise SystemExit("`forefront dev` told no addresses")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/forefront")
    arguments.add_argument("--without-browser", action="store_true", help="leave Chromium out")
    arguments.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of schemathesis; default: another one each time")
    args = arguments.parse_args()
    processes.end_on_signals()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="forefront-interop-") as directory:
        scratch = pathlib.Path(directory)
        with Fleet(args.binary.resolve(), scratch, "--long-dummy", "300ms..300ms", "--lifetime", "off") as fleet:
            https = [node["https"].replace("127.0.0.1", "localhost") for node in addresses(fleet)["nodes"]]
            http = [f"http://{node.http.replace('127.0.0.1', 'localhost')}" for node in fleet.nodes]
            for number, node in enumerate(fleet.nodes):
                for protocol in CURL:
                    answer = curl(https[number] + "/", protocol)
                    good = answer.status == 200 and answer.version == VERSIONS[protocol]
                    table.add(f"curl, node {node.name}, {protocol}", good, f"{answer.status}, HTTP/{answer.version}")
            certificate = tls(table, [int(base.rsplit(":", 1)[1]) for base in https])
            aioquic(table, scratch, https)
            if not args.without_browser:
                browser(table, scratch, https[0], key_hash(certificate))
            routes(table, http[0], https[0], new_session(http[0]))
            billing.through_the_front(table, https)
            billing.connectors(table, scratch, addresses(fleet)["billing"]["iproto"])
        with billing.Node(args.binary.resolve(), scratch) as node:
            billing.connectors(table, scratch, node.iproto, billing.USER)
            billing.document(table, scratch, node, args.seed)
    return table.finish()


if __name__ == "__main__":
    sys.exit(main())
