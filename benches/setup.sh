#!/bin/sh
# What the bench needs: the peers, the load generator, a C compiler for the floor server, and strace.
set -eu
cd "$(dirname "$0")/.."
.ci/need python3:python3 gcc:gcc as:libc6-dev wrk:wrk nginx:nginx haproxy:haproxy strace:strace
