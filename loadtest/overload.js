// All-uncached 120 requests/s while one of the two legacy processes is gone: one process can do 100/s, so some must be
// refused, at once and with advice (503 with Retry-After), and nothing may fail in any other way.
// Environment: SECONDS (default 20), RATE, NODES, SEED.
import { randomSeed } from 'k6';
import { Counter } from 'k6/metrics';
import { steadyStream, uncached } from './lib/mix.js';
import { observed, trendStats } from './lib/outcome.js';

export { summary as handleSummary } from './lib/outcome.js';

const good = new Counter('answers_good');
const refused = new Counter('answers_refused');
const otherwise = new Counter('answers_failed_otherwise');
const seconds = +(__ENV.SECONDS || 20);

export function judged() {
  const answer = uncached();
  if (answer.status === 200) good.add(1);
  else if (answer.status === 503 && answer.headers['Retry-After'] !== undefined) refused.add(1);
  else {
    otherwise.add(1);
    console.warn(`answer ${answer.status} ${answer.error} to ${answer.request.method} ${answer.request.url}`);
  }
}

const thresholds = observed();
thresholds.answers_good = [`count>=${60 * seconds}`];
thresholds.answers_refused = ['count>=0'];
thresholds.answers_failed_otherwise = ['count==0'];

export const options = {
  scenarios: { uncached: steadyStream('judged', +(__ENV.RATE || 120), seconds) },
  thresholds,
  summaryTrendStats: trendStats,
  discardResponseBodies: true,
};

// Each virtual user has its own sequence: with one seed for all, they would ask for the same ids at the same time.
randomSeed(+(__ENV.SEED || 1) * 100000 + __VU);
