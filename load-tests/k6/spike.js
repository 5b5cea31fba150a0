// What does a sudden rush do, and is all as before when it is over?
import { talk } from "./lib/talk.js";
import { how, objectives, setting, test } from "./lib/test.js";
export { handleSummary } from "./lib/summary.js";

const [calm, peak] = [setting("VUS", 5), setting("PEAK", 40)];
const length = __ENV.DURATION || "1m";
const loose = { ack: ["p(99)<5000"], delivery: ["p(99)<5000"], connect: ["p(95)<5000"] };
const { options, stages } = test(
  [
    ["up", "10s", calm],
    ["before", length, calm],
    ["spike", "5s", peak],
    ["spike", length, peak],
    ["ebb", "5s", calm],
    ["after", length, calm],
    ["down", "10s", 0],
  ],
  loose,
);
// Before and after it, as always.
for (const stage of ["before", "after"]) {
  for (const [metric, limits] of Object.entries(objectives)) {
    options.thresholds[`${metric}{stage:${stage}}`] = limits;
  }
}
export { options };

const each = how({ seconds: setting("SECONDS", 10) });
export default () => talk(each, stages);
