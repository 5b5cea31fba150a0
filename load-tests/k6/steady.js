// Does it keep its objectives at the load that is expected? The figures to compare releases by.
import { talk } from "./lib/talk.js";
import { how, objectives, setting, test } from "./lib/test.js";
export { handleSummary } from "./lib/summary.js";

const vus = setting("VUS", 10);
export const { options, stages } = test(
  [["up", "20s", vus], ["steady", __ENV.DURATION || "5m", vus], ["down", "10s", 0]],
  objectives,
);

const each = how();
export default () => talk(each, stages);
