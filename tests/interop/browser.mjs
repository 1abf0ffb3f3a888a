// Loads a page of localhost over HTTP/3 in headless Chromium, and prints as one line of JSON what the browser itself says of it.
// Fails unless the protocol is h3 and the status 200.
//
//     MODULES=target/interop node browser.mjs https://localhost:8443/ SPKI
//
// SPKI: base64 of the SHA-256 of the certificate's key, which the browser shall trust.
import { createRequire } from 'node:module';
import { resolve } from 'node:path';

const MILLISECONDS_MAX = 45_000;

const { chromium } = createRequire(resolve(process.env.MODULES, 'x.js'))('playwright-core');
const [url, spki] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM || '/usr/bin/chromium';

// Whatever hangs, this program ends; the browser ends with it.
setTimeout(() => {
  console.error(`not within ${MILLISECONDS_MAX} ms`);
  process.exit(3);
}, MILLISECONDS_MAX).unref();

const browser = await chromium.launch({
  executablePath,
  timeout: 30_000,
  args: [
    '--no-sandbox', '--headless', '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--no-first-run', '--enable-quic', `--origin-to-force-quic-on=${new URL(url).host}`,
    `--ignore-certificate-errors-spki-list=${spki}`,
  ],
});
try {
  const page = await browser.newPage();
  const response = await page.goto(url, { timeout: 20_000 });
  const protocol = await page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol);
  const status = response.status();
  console.log(JSON.stringify({ browser: browser.version(), protocol, status, fields: response.headers() }));
  if (protocol !== 'h3' || status !== 200) process.exitCode = 1;
} finally {
  await browser.close();
}
