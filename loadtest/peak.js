// R3: 120 requests/s for at least a minute with both nodes up. Environment: SECONDS (default 60), RATE, NODES, SEED.
import { randomSeed } from 'k6';
import { mixScenarios } from './lib/mix.js';
import { errorsAtMost, freshAndFast, observed, quick, trendStats } from './lib/outcome.js';

export { mix } from './lib/mix.js';
export { addAndDeleteSession, customerList, movieList, sessionList } from './lib/target.js';
export { summary as handleSummary } from './lib/outcome.js';

const thresholds = observed();
for (const name of ['operation', 'db_dummy', 'movie', 'customer', 'session']) quick(thresholds, name);
for (const name of ['movie_list', 'customer_list', 'session_post', 'session_delete']) errorsAtMost(thresholds, name, 0.01);
errorsAtMost(thresholds, 'session_list', 0.05);
freshAndFast(thresholds);

export const options = {
  scenarios: mixScenarios(+(__ENV.RATE || 120), +(__ENV.SECONDS || 60)),
  thresholds,
  summaryTrendStats: trendStats,
  discardResponseBodies: true,
};

// Each virtual user has its own sequence: with one seed for all, they would ask for the same ids at the same time.
randomSeed(+(__ENV.SEED || 1) * 100000 + __VU);
