#!/bin/sh
# What the interoperation tests need: curl and chromium from the system; aioquic and Tarantool's connector from PyPI into the
# private environment that the load tests use too; an older connector, and schemathesis with all it depends on, beside it;
# playwright-core from npm below target/.
set -eu
cd "$(dirname "$0")/../.."
aioquic_version=1.2.0
tarantool_version=1.3.0
tarantool_old_version=0.7.1
schemathesis_version=4.32.5
playwright_version=1.55.0

.ci/need python3:python3 python:ensurepip:python3-venv curl:curl openssl:openssl chromium:chromium node:nodejs npm:npm
[ -x target/venv/bin/python ] || python3 -m venv target/venv

# has PYTHON PACKAGE VERSION
has() {
    "$1" -c "import importlib.metadata as m; assert m.version('$2') == '$3'" 2>/dev/null
}

# install PYTHON PACKAGE VERSION INTO [OPTION...]
install() {
    python=$1 package=$2 version=$3 into=$4
    shift 4
    "$python" -m pip install --quiet --disable-pip-version-check "$@" "$package==$version" </dev/null
    echo "installed: $package $version into $into"
}

python=target/venv/bin/python
has $python aioquic $aioquic_version || install $python aioquic $aioquic_version target/venv
has $python tarantool $tarantool_version || install $python tarantool $tarantool_version target/venv
old=target/interop/tarantool-$tarantool_old_version
[ -d $old/tarantool ] || install $python tarantool $tarantool_old_version $old --target $old
[ -x target/interop/schemathesis/bin/python ] || python3 -m venv target/interop/schemathesis
own=target/interop/schemathesis/bin/python
has $own schemathesis $schemathesis_version || install $own schemathesis $schemathesis_version target/interop/schemathesis
package=target/interop/node_modules/playwright-core/package.json
if ! grep -qs "\"version\": \"$playwright_version\"" "$package"; then
    mkdir -p target/interop
    PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install --prefix target/interop --no-audit --no-fund --silent \
        "playwright-core@$playwright_version" </dev/null
    echo "installed: playwright-core $playwright_version into target/interop"
fi
