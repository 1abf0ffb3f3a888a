// GET /small at a constant rate, while clients that do not read hold answers of 64 MB. The runner judges each request.
// Environment: SECONDS, RATE, NODES (asked in turn).
import http from 'k6/http';
import exec from 'k6/execution';
import { steadyStream } from './lib/mix.js';

export { summary as handleSummary } from './lib/outcome.js';

const nodes = __ENV.NODES.split(',');

export function small() {
  http.get(`${nodes[exec.scenario.iterationInTest % nodes.length]}/small`, { tags: { name: 'small' }, timeout: '20s' });
}

export const options = {
  scenarios: { small: steadyStream('small', +__ENV.RATE, +__ENV.SECONDS) },
  discardResponseBodies: true,
  insecureSkipTLSVerify: true,
};
