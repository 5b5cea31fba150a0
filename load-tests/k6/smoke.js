// Does it work at all? Two virtual users with ten sockets each for a few seconds.
import { talk } from "./lib/talk.js";
import { how, setting, test } from "./lib/test.js";
export { handleSummary } from "./lib/summary.js";

// Generous: it also runs on a debug build, on a machine that does much else.
const objectives = { ack: ["p(95)<5000"], delivery: ["p(95)<5000"], connect: ["p(95)<5000"] };
const { options, stages } = test([["smoke", "60s"]], objectives, {
  executor: "per-vu-iterations",
  vus: 2,
  iterations: 1,
  maxDuration: "50s",
});
options.thresholds.delivered = ["count>0"];
options.thresholds.doubled = ["count==0"];
export { options };

const each = how({ sockets: setting("SOCKETS", 10), seconds: setting("SECONDS", 5), settle: 20 });
export default () => talk(each, stages);
