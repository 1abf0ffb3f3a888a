#!/bin/sh
# What the drill of billing needs: PostgreSQL's server (no cluster of the machine's), Patroni, etcd, setpriv to run them as
# somebody else than root. Their packages are kept from starting anything.
set -eu
cd "$(dirname "$0")/../.."
.ci/postgres
.ci/need python3:python3 patroni:patroni etcd:etcd-server setpriv:util-linux
