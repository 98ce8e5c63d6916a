// The unary call of `cargo xtask bench mesh`, by k6, with a client certificate. Settings come from the environment:
// ADDRESS, FOLDER (tls.crt, tls.key, ca.crt), TOKEN, PROTO (the folder of the contract), SECONDS, CALLERS.
import { check } from 'k6';
import { Client, StatusOK } from 'k6/net/grpc';

const client = new Client();
client.load([__ENV.PROTO], 'tars/orchestration/v1/metrics.proto');

const tls = {
  cert: open(`${__ENV.FOLDER}/tls.crt`),
  key: open(`${__ENV.FOLDER}/tls.key`),
  cacerts: [open(`${__ENV.FOLDER}/ca.crt`)],
};
const metadata = { authorization: `Bearer ${__ENV.TOKEN}` };

export const options = {
  vus: Number(__ENV.CALLERS),
  duration: `${__ENV.SECONDS}s`,
  thresholds: { checks: ['rate==1'] },
};

let connected = false;

export default function () {
  if (!connected) {
    client.connect(__ENV.ADDRESS, { tls });
    connected = true;
  }
  const answer = client.invoke('tars.orchestration.v1.TrainingMetricsService/GetTrainingSummary', { agent_id: 'policy' }, { metadata });
  check(answer, { 'the call is answered': (a) => a && a.status === StatusOK });
}

export function handleSummary(data) {
  const calls = data.metrics.grpc_req_duration;
  const checks = data.metrics.checks.values;
  const summary = {
    calls: checks.passes,
    failed: checks.fails,
    p50_ms: calls ? calls.values.med : null,
    p95_ms: calls ? calls.values['p(95)'] : null,
  };
  return { stdout: JSON.stringify(summary) };
}
