#!/bin/sh
# What the bench needs: the peers, the load generators, a C compiler for the floor server, openssl for a certificate, and strace.
set -eu
cd "$(dirname "$0")/.."
.ci/need python3:python3 gcc:gcc as:libc6-dev wrk:wrk h2load:nghttp2-client openssl:openssl nginx:nginx haproxy:haproxy strace:strace
