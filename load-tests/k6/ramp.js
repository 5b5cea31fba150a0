// How far does it go? More and more virtual users: look for the stage in which the times leave the
// objectives, and what was the limit there (CPU of the node, the database, or of k6 itself).
import { talk } from "./lib/talk.js";
import { how, objectives, setting, test } from "./lib/test.js";
export { handleSummary } from "./lib/summary.js";

const vus = setting("VUS", 20);
const step = __ENV.STEP || "1m";
const quarters = [1, 2, 3, 4].map((at) => [`${at} of 4`, step, Math.ceil((vus * at) / 4)]);
export const { options, stages } = test([...quarters, ["down", "10s", 0]], objectives);

const each = how();
export default () => talk(each, stages);
