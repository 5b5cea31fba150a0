// Everybody loses his connection at once and comes back: what do those feel who still talk, how long
// does it take, and does everybody get what he missed?
import { talk } from "./lib/talk.js";
import { how, objectives, setting, test } from "./lib/test.js";
export { handleSummary } from "./lib/summary.js";

const before = setting("BEFORE", 15);
const after = setting("AFTER", 30);
const { options, stages } = test(
  [["before", `${before}s`], ["storm", `${after}s`], ["settling", "60s"]],
  {},
  {
    executor: "per-vu-iterations",
    vus: setting("VUS", 10),
    iterations: 1,
    maxDuration: `${before + after + 60}s`,
  },
);
options.thresholds["ack{stage:before}"] = objectives.ack;
options.thresholds["ack{stage:storm}"] = ["p(99)<5000"];
options.thresholds["delivery{stage:storm}"] = ["p(99)<5000"];
options.thresholds.back = [`p(99)<${setting("BACK_P99", 15000)}`];
export { options };

const each = how({
  sockets: setting("SOCKETS", 50),
  seconds: before + after,
  cutAfter: before,
  settle: 50,
});
export default () => talk(each, stages);
