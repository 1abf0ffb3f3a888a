// Where requests go and how each one is made and judged. Every request is sent once: nothing here tries again.
// (k6's own HTTP client, Go's, repeats a GET by itself when a reused connection was reset before any answer. It never
// repeats a POST that may have been sent, so POSTs are counted on their own.)
import http from 'k6/http';
import exec from 'k6/execution';
import { Counter, Rate, Trend } from 'k6/metrics';

const nodes = (__ENV.NODES || 'http://127.0.0.1:8080,http://127.0.0.1:8081').split(',');
const REQUEST_TIMEOUT = '20s';
const LIST_TIMEOUT = '120s';
const MOVIES = 29020;
const CUSTOMERS = 500000;
const SESSIONS = 5000000;
const AGE_MAX_MS = 60000;

// Age of each /long_dummy answer when it arrived: by the moment the origin began it (its body), and by the Age field.
export const ageOfBody = new Trend('long_dummy_age_of_body', true);
export const ageField = new Trend('long_dummy_age_field_seconds');
export const underOneSecond = new Rate('long_dummy_under_one_second');
export const tooOld = new Counter('long_dummy_too_old');
export const noAge = new Counter('long_dummy_without_age');

// Both nodes get every kind of request: the shift by one each 20 keeps the mix's pattern from sticking to one node.
function node() {
  const n = exec.scenario.iterationInTest;
  return nodes[(n + Math.floor(n / 20)) % nodes.length];
}

function below(n) {
  return 1 + Math.floor(Math.random() * n);
}

function ask(method, name, path, body, more) {
  const params = Object.assign(
    { tags: { name }, timeout: REQUEST_TIMEOUT, redirects: 0, headers: {}, responseCallback: http.expectedStatuses(200) },
    more || {},
  );
  if (body !== null) params.headers['Content-Type'] = 'application/json';
  return http.request(method, node() + path, body, params);
}

// The value stays below 2^32: the legacy service reads commands from the bits above (a request can kill it).
export function operation() {
  return ask('POST', 'operation', '/operation', JSON.stringify({ operation: Math.floor(Math.random() * 2 ** 31) }));
}

export function dbDummy() {
  return ask('GET', 'db_dummy', '/db_dummy', null);
}

export function movie() {
  return ask('GET', 'movie', `/api/movie/${below(MOVIES)}`, null);
}

export function customer() {
  return ask('GET', 'customer', `/api/customer/${below(CUSTOMERS)}`, null);
}

export function session() {
  return ask('GET', 'session', `/api/session/${below(SESSIONS)}`, null);
}

export function movieList() {
  return ask('GET', 'movie_list', '/api/movie', null, { timeout: LIST_TIMEOUT, responseType: 'none' });
}

export function customerList() {
  return ask('GET', 'customer_list', '/api/customer', null, { timeout: LIST_TIMEOUT, responseType: 'none' });
}

export function sessionList() {
  return ask('GET', 'session_list', '/api/session', null, { timeout: LIST_TIMEOUT, responseType: 'none' });
}

// Adds a session and deletes the same one.
export function addAndDeleteSession() {
  const written = JSON.stringify({
    start_time: '2024-05-06T07:08:09Z',
    customer_id: below(CUSTOMERS),
    movie_id: below(MOVIES),
  });
  const added = ask('POST', 'session_post', '/api/session', written, {
    timeout: LIST_TIMEOUT,
    responseType: 'text',
    responseCallback: http.expectedStatuses(200, 201),
  });
  if (added.status !== 200 && added.status !== 201) return;
  ask('DELETE', 'session_delete', `/api/session/${added.json('id')}`, null, {
    timeout: LIST_TIMEOUT,
    responseCallback: http.expectedStatuses(200, 204),
  });
}

export function longDummy() {
  const answer = ask('GET', 'long_dummy', '/long_dummy', null, { responseType: 'text' });
  const arrived = Date.now();
  underOneSecond.add(answer.status === 200 && answer.timings.duration < 1000);
  if (answer.status !== 200) return answer;
  const field = answer.headers['Age'];
  if (field !== undefined) {
    ageField.add(Number(field));
    if (Number(field) * 1000 > AGE_MAX_MS) tooOld.add(1);
  }
  // The strict reading: its data are as old as the moment the origin began to work on it.
  const made = /"(?:started_at|generated_at)"\s*:\s*(\d+)/.exec(answer.body);
  if (!made) {
    noAge.add(1);
    return answer;
  }
  // Both clocks are this machine's; a millisecond of rounding must not give a negative age.
  const age = Math.max(0, arrived - Number(made[1]));
  ageOfBody.add(age);
  if (age > AGE_MAX_MS) tooOld.add(1);
  return answer;
}
