// The mix of the peak and of the faults, as in the acceptance run: 30 % POST /operation, 15 % /db_dummy, 30 % the three
// /{id}, 25 % /long_dummy; beside it one of each list and one POST and DELETE of a session a minute. At 120/s that is 90/s
// for the origin.
import exec from 'k6/execution';
import { customer, dbDummy, longDummy, movie, operation, session } from './target.js';

const twenty = [
  operation, longDummy, movie, operation, dbDummy, longDummy, customer, operation, session, longDummy,
  operation, movie, dbDummy, longDummy, operation, customer, session, longDummy, operation, dbDummy,
];
const withoutCached = twenty.filter((one) => one !== longDummy);

export function mix() {
  return twenty[exec.scenario.iterationInTest % twenty.length]();
}

export function uncached() {
  return withoutCached[exec.scenario.iterationInTest % withoutCached.length]();
}

function constantRate(exec, rate, seconds) {
  return {
    executor: 'constant-arrival-rate', exec, rate, timeUnit: '1s', duration: `${seconds}s`,
    preAllocatedVUs: Math.max(20, Math.ceil(rate * 1.5)), maxVUs: Math.max(50, rate * 10), gracefulStop: '30s',
  };
}

// One a minute, the first `start` seconds after the beginning.
function oneAMinute(exec, start, seconds) {
  return {
    executor: 'constant-arrival-rate', exec, rate: 1, timeUnit: '1m', startTime: `${start}s`,
    duration: `${Math.max(1, seconds - start)}s`, preAllocatedVUs: 1, maxVUs: 3, gracefulStop: '120s',
  };
}

export function steadyStream(exec, rate, seconds) {
  return constantRate(exec, rate, seconds);
}

// Scenarios for `export const options`; the script exports functions of these names. The lists and the write come one a
// minute each, the first `later` seconds later than usual.
export function mixScenarios(rate, seconds, later = 0) {
  return {
    mix: constantRate('mix', rate, seconds),
    movie_list: oneAMinute('movieList', later + 2, seconds),
    customer_list: oneAMinute('customerList', later + 5, seconds),
    session_list: oneAMinute('sessionList', later + 8, seconds),
    session_write: oneAMinute('addAndDeleteSession', later + 12, seconds),
  };
}
