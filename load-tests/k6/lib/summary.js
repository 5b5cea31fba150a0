// A summary for people on stdout; the whole of it as JSON where REPORT names a file.

const ms = (value) => (value === undefined ? "-" : value.toFixed(1));
const split = (name) => name.match(/^([^{]+)(?:\{stage:(.+)\})?$/) || [name, name];

function trends(metrics) {
  const rows = [["", "stage", "count", "p50 ms", "p95 ms", "p99 ms", "max ms"]];
  for (const wanted of ["ack", "delivery", "connect", "back"]) {
    for (const [name, { values }] of Object.entries(metrics)) {
      const [, what, stage] = split(name);
      if (what !== wanted) continue;
      const of = (key) => ms(values[key]);
      const row = [what, stage || "all", values.count];
      rows.push([...row, of("med"), of("p(95)"), of("p(99)"), of("max")]);
    }
  }
  return rows;
}

function counts(metrics) {
  const names = ["sent", "acked", "refused", "delivered", "missing", "doubled", "lost"];
  return names.map((name) => [name, metrics[name] ? metrics[name].values.count : 0]);
}

function checks(group) {
  return group.checks.map(({ name, passes, fails }) => [
    fails ? "FAILED" : "held", name, `${passes} of ${passes + fails}`,
  ]);
}

function objectives(metrics) {
  const rows = [];
  for (const [name, { thresholds }] of Object.entries(metrics)) {
    for (const [rule, { ok }] of Object.entries(thresholds || {})) {
      rows.push([ok ? "held" : "FAILED", `${name} ${rule}`]);
    }
  }
  return rows;
}

function table(rows) {
  const widths = [];
  for (const row of rows) {
    row.forEach((cell, at) => (widths[at] = Math.max(widths[at] || 0, String(cell).length)));
  }
  const line = (row) => row.map((cell, at) => String(cell).padEnd(widths[at])).join("  ").trimEnd();
  return rows.map(line).join("\n");
}

export function handleSummary(data) {
  const { metrics, root_group: root } = data;
  const parts = [trends(metrics), counts(metrics), checks(root), objectives(metrics)];
  const text = parts.filter((rows) => rows.length).map(table).join("\n\n");
  const out = { stdout: `\n${text}\n` };
  if (__ENV.REPORT) out[__ENV.REPORT] = JSON.stringify(data, null, 2);
  return out;
}
