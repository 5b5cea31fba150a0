// What is measured, each with the stage of the test in which it was due.
import exec from "k6/execution";
import { Counter, Trend } from "k6/metrics";

export const metrics = {
  // Milliseconds. From when a message was due: a server that stalls cannot hide it by slowing us.
  ack: new Trend("ack", true),
  delivery: new Trend("delivery", true),
  // From the first packet to `hello`; and from a cut until what was missed is here.
  connect: new Trend("connect", true),
  back: new Trend("back", true),
  sent: new Counter("sent"),
  acked: new Counter("acked"),
  refused: new Counter("refused"),
  delivered: new Counter("delivered"),
  // Of acknowledged messages at recipients; and what came again.
  missing: new Counter("missing"),
  doubled: new Counter("doubled"),
  // Sockets that ended without our will, and attempts that failed.
  lost: new Counter("lost"),
};

const seconds = (text) => {
  const parts = text.match(/^(\d+)(s|m|h)$/);
  return parts[1] * { s: 1, m: 60, h: 3600 }[parts[2]];
};

// A test's stages: [name, duration, virtual users at its end], in their order.
export class Stages {
  constructor(stages) {
    this.stages = stages;
    let end = 0;
    this.ends = stages.map(([name, duration]) => [name, (end += seconds(duration) * 1000)]);
  }

  // For tags: where the test is now.
  now() {
    const at = exec.instance.currentTestRunDuration;
    const stage = this.ends.find(([, end]) => at < end) || this.ends[this.ends.length - 1];
    return { stage: stage[0] };
  }

  k6() {
    return this.stages.map(([, duration, target]) => ({ duration, target }));
  }

  // Objectives for each stage apart; a metric without one is not in the summary by stage.
  thresholds(objectives) {
    const names = [...new Set(this.stages.map(([name]) => name))];
    const each = names.flatMap((name) =>
      Object.entries(objectives).map(([metric, limits]) => [`${metric}{stage:${name}}`, limits]));
    return Object.fromEntries(each);
  }
}
