// R1: the mix at 120 requests/s while the runner kills, hangs, sickens or drains something. The runner judges each request
// by its time (k6's CSV output); here only what must hold whatever happens: nothing too old is ever served.
// Environment: SECONDS (default 45), RATE, NODES, SEED, NEW_CONNECTIONS (1: one for each request).
import { randomSeed } from 'k6';
import { mixScenarios } from './lib/mix.js';
import { observed, trendStats } from './lib/outcome.js';

export { mix } from './lib/mix.js';
export { addAndDeleteSession, customerList, movieList, sessionList } from './lib/target.js';
export { summary as handleSummary } from './lib/outcome.js';

const thresholds = observed();
thresholds.long_dummy_too_old = ['count==0'];
thresholds.http_req_failed = ['rate<=0.01'];

export const options = {
  // The lists come while the damage lasts, not at its instant: one whose body is half sent when its process dies is cut, and
  // no proxy can hide that.
  scenarios: mixScenarios(+(__ENV.RATE || 120), +(__ENV.SECONDS || 45), 12),
  thresholds,
  summaryTrendStats: trendStats,
  discardResponseBodies: true,
  insecureSkipTLSVerify: true,
  noConnectionReuse: __ENV.NEW_CONNECTIONS === '1',
};

// Each virtual user has its own sequence: with one seed for all, they would ask for the same ids at the same time.
randomSeed(+(__ENV.SEED || 1) * 100000 + __VU);
