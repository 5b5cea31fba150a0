// Is it after hours as in the beginning? A modest load, for long; look at the node's memory meanwhile
// (scripts/soak judges that by itself).
import { talk } from "./lib/talk.js";
import { how, objectives, setting, test } from "./lib/test.js";
export { handleSummary } from "./lib/summary.js";

const vus = setting("VUS", 5);
// Two halves, so that the summary shows them side by side.
const half = __ENV.DURATION || "30m";
export const { options, stages } = test(
  [["up", "30s", vus], ["first half", half, vus], ["second half", half, vus], ["down", "10s", 0]],
  objectives,
);

const each = how({ seconds: setting("SECONDS", 60) });
export default () => talk(each, stages);
