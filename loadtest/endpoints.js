// R4 to R8 and R11, one after the other, each with its own bound: the quick ones and /long_dummy at 120 requests/s, each list
// and POST and DELETE of a session with one user in a closed loop.
// Environment: SECONDS of each (default 20), RATE, ONLY (names, comma-separated), NODES, SEED.
import { randomSeed } from 'k6';
import { steadyStream } from './lib/mix.js';
import { errorsAtMost, freshAndFast, observed, quick, trendStats } from './lib/outcome.js';

export {
  addAndDeleteSession, customer, customerList, dbDummy, longDummy, movie, movieList, operation, session, sessionList,
} from './lib/target.js';
export { summary as handleSummary } from './lib/outcome.js';

const rate = +(__ENV.RATE || 120);
const seconds = +(__ENV.SECONDS || 20);
const PAUSE_SECONDS = 2;

function oneUser(exec) {
  return { executor: 'constant-vus', exec, vus: 1, duration: `${seconds}s`, gracefulStop: '120s' };
}

const all = {
  // First, while the cache is warm: an answer that nobody asked for within its lifetime is let go.
  long_dummy: steadyStream('longDummy', rate, seconds),
  operation: steadyStream('operation', rate, seconds),
  db_dummy: steadyStream('dbDummy', rate, seconds),
  movie: steadyStream('movie', rate, seconds),
  customer: steadyStream('customer', rate, seconds),
  session: steadyStream('session', rate, seconds),
  movie_list: oneUser('movieList'),
  customer_list: oneUser('customerList'),
  session_list: oneUser('sessionList'),
  session_write: oneUser('addAndDeleteSession'),
};

const wanted = __ENV.ONLY ? __ENV.ONLY.split(',') : Object.keys(all);
const scenarios = {};
wanted.forEach((name, place) => {
  scenarios[name] = Object.assign({ startTime: `${place * (seconds + PAUSE_SECONDS)}s` }, all[name]);
});

const thresholds = observed();
for (const name of ['operation', 'db_dummy', 'movie', 'customer', 'session']) quick(thresholds, name);
for (const name of ['movie_list', 'customer_list', 'session_post', 'session_delete']) errorsAtMost(thresholds, name, 0.01);
errorsAtMost(thresholds, 'session_list', 0.05);
freshAndFast(thresholds);

export const options = { scenarios, thresholds, summaryTrendStats: trendStats, discardResponseBodies: true };

// Each virtual user has its own sequence: with one seed for all, they would ask for the same ids at the same time.
randomSeed(+(__ENV.SEED || 1) * 100000 + __VU);
