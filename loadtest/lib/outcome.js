// Thresholds and the summary file, the same for every script.
export const trendStats = ['med', 'p(90)', 'p(95)', 'p(99)', 'max', 'count'];

const names = [
  'operation', 'db_dummy', 'movie', 'customer', 'session', 'movie_list', 'customer_list', 'session_list', 'session_post',
  'session_delete', 'long_dummy',
];

// A metric of one name reaches the summary only if a threshold names it; these always hold.
export function observed() {
  const thresholds = {};
  for (const name of names) {
    thresholds[`http_reqs{name:${name}}`] = ['count>=0'];
    thresholds[`http_req_failed{name:${name}}`] = ['rate>=0'];
    thresholds[`http_req_duration{name:${name}}`] = ['max>=0'];
  }
  return thresholds;
}

// R4, R5, R6: under 400 ms for 90 %, errors at most 1 %.
export function quick(thresholds, name) {
  thresholds[`http_req_duration{name:${name}}`] = ['p(90)<400'];
  thresholds[`http_req_failed{name:${name}}`] = ['rate<=0.01'];
}

export function errorsAtMost(thresholds, name, share) {
  thresholds[`http_req_failed{name:${name}}`] = [`rate<=${share}`];
}

// R11: never older than a minute, and under 1 s for at least 75 % of requests.
export function freshAndFast(thresholds) {
  thresholds.long_dummy_too_old = ['count==0'];
  thresholds.long_dummy_without_age = ['count==0'];
  thresholds.long_dummy_under_one_second = ['rate>=0.75'];
}

// Used as `handleSummary`: the runner reads the file; k6's own report is shown only without it.
export function summary(data) {
  return __ENV.SUMMARY ? { [__ENV.SUMMARY]: JSON.stringify(data) } : { stdout: JSON.stringify(data.metrics, null, 1) + '\n' };
}
