#!/bin/sh
# What the billing bench needs: Tarantool, which no package may start as a service, and PostgreSQL's server.
set -eu
cd "$(dirname "$0")/../.."
.ci/need python3:python3 tarantool:tarantool
.ci/postgres
