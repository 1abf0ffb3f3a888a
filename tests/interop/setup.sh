#!/bin/sh
# What the interoperation tests need: curl and chromium from the system, aioquic from PyPI into the private environment that
# the load tests use too, playwright-core from npm below target/.
set -eu
cd "$(dirname "$0")/../.."
aioquic_version=1.2.0
playwright_version=1.55.0

.ci/need python3:python3 python:ensurepip:python3-venv curl:curl openssl:openssl chromium:chromium node:nodejs npm:npm
[ -x target/venv/bin/python ] || python3 -m venv target/venv
if ! target/venv/bin/python -c "import aioquic; assert aioquic.__version__ == '$aioquic_version'" 2>/dev/null; then
    target/venv/bin/pip install --quiet --disable-pip-version-check "aioquic==$aioquic_version" </dev/null
    echo "installed: aioquic $aioquic_version into target/venv"
fi
package=target/interop/node_modules/playwright-core/package.json
if ! grep -qs "\"version\": \"$playwright_version\"" "$package"; then
    mkdir -p target/interop
    PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install --prefix target/interop --no-audit --no-fund --silent \
        "playwright-core@$playwright_version" </dev/null
    echo "installed: playwright-core $playwright_version into target/interop"
fi
