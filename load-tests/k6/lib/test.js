// What the tests have in common: settings by environment, options, objectives.
import { Stages } from "./metrics.js";

export const setting = (name, value) => Number(__ENV[name] || value);

const url = (__ENV.URL || "http://127.0.0.1:8083").replace(/\/$/, "");

// Of one virtual user's iteration.
export const how = (changes) => ({
  url,
  sockets: setting("SOCKETS", 20),
  members: setting("MEMBERS", 5),
  rate: setting("RATE", 10),
  seconds: setting("SECONDS", 20),
  settle: setting("SETTLE", 10),
  ...changes,
});

// stages: as for Stages. Without a scenario of its own, the virtual users follow them; an iteration
// that has begun is let finish: only then is it known whether all has arrived.
export function test(stages, objectives, scenario) {
  const all = new Stages(stages);
  const following = {
    executor: "ramping-vus",
    startVUs: 0,
    stages: all.k6(),
    gracefulRampDown: "90s",
    gracefulStop: "90s",
  };
  const options = {
    scenarios: { talk: scenario || following },
    thresholds: {
      checks: ["rate==1"],
      missing: ["count==0"],
      ...all.thresholds(objectives),
    },
    summaryTrendStats: ["count", "med", "p(95)", "p(99)", "max"],
    tags: { testid: __ENV.TEST || "talk" },
  };
  return { options, stages: all };
}

export const objectives = {
  ack: [`p(95)<${setting("ACK_P95", 250)}`, `p(99)<${setting("ACK_P99", 1000)}`],
  delivery: [`p(95)<${setting("DELIVERY_P95", 300)}`, `p(99)<${setting("DELIVERY_P99", 1500)}`],
  connect: [`p(95)<${setting("CONNECT_P95", 1000)}`],
};
