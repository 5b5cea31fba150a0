"""What the documents say must follow from the raw results: checked on results made up here."""

import tempfile
import unittest
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

from benchmark import capacity, cli, compare, measures, report, svg
from benchmark.results import Results
from benchmark.tests import BY_NAME, STANDARD, Scale

CPU = lambda total: {"user": total, "system": 0.0}


def cost(**by_process) -> dict:
    return {"cpu": {name: CPU(value) for name, value in by_process.items()}, "machine": {"busy": 12.0, "idle": 8.0, "softirq": 2.0}}


def traffic(rate: float, us: dict, seconds: float = 10.0, p99: int = 20_000) -> dict:
    """As loadgen measures a stretch: each message needs so many microseconds of each process."""
    each = {"node": 0.0, "postgres": 0.0, "redis": 0.0, "kafka": 0.0, **us}
    spent = {name: value * rate * seconds / 1e6 for name, value in each.items()}
    latency = {what: {"p50_us": 5_000, "p99_us": p99, "max_us": p99} for what in ("ack", "delivery")}
    return {"messages_per_second": rate, "deliveries_per_second": rate, "refusals_per_second": 0.0, "seconds": seconds,
            "latency": latency, "cost": cost(**spent, loadgen=5.0), "us_per_message": {**each, "loadgen": 99.0}, "us_per_delivery": each}


def day(action: str, rate: float, us: dict) -> dict:
    seconds, users = 10.0, 500
    spent = {part: us.get(part, 0.0) * rate for part in capacity.PARTS}
    if action in capacity.BESIDE:
        spent = {part: spent[part] + 100 * MESSAGE.get(part, 0.0) for part in capacity.PARTS}
    spent = {part: (value + BACKGROUND[part] + users * SOCKET.get(part, 0.0)) * seconds / 1e6 for part, value in spent.items()}
    name = capacity.REPORTED[action]
    return {"users": users, "seconds": seconds, "per_second": {name: rate, **({"send": 100.0} if action in capacity.BESIDE else {})},
            "cost": cost(**spent, loadgen=1.0), "outcome": {"acked": 1000, "delivered": 10_000}}


BACKGROUND = {"node": 3_000.0, "postgres": 1_000.0, "redis": 500.0, "kafka": 9_000.0}
SOCKET = {"node": 1.0, "redis": 0.1}
MESSAGE = {"node": 400.0, "postgres": 300.0, "redis": 50.0}
DIRECT = {"node": 40.0, "postgres": 100.0, "redis": 5.0}


def made_up(folder: Path) -> Results:
    results = Results(folder / "benchmarks/results.jsonl")
    results.setup({"commit": "abc", "machine": {"cpu": "x", "cores": 2, "open files for each process": 20_000}, "versions": {}, "node": {}})
    def add(test: str, found: dict, faults=()):
        repeat = len(results.of(test)) + 1
        results.add({"kind": "result", "test": test, "repeat": repeat, "commit": "abc", "at": "then", "faults": list(faults), "command": ["x"], "report": found})

    for rate in (9_000.0, 10_000.0, 12_000.0):
        add("chat", traffic(rate, DIRECT))
    for rate in (100, 500):
        net = {part: DIRECT.get(part, 0.0) + BACKGROUND[part] / rate for part in capacity.PARTS}
        add(f"load-{rate}", traffic(rate, net))
    sockets = 15_000
    held = {part: (BACKGROUND[part] + sockets * SOCKET.get(part, 0.0)) * 25 / 1e6 for part in capacity.PARTS}
    kernel = {"slab_bytes_per_socket": 8_000.0, "buffer_bytes_per_socket": 0.0}
    idle = {"sockets": sockets, "hold_seconds": 25.0, "cost": cost(**held, loadgen=1.0), "bytes_per_socket": {"node": 1_024.0, "redis": 300.0},
            "rss_before": {"node": 20 << 20}, "rss_held": {"node": 40 << 20}, "kernel": kernel,
            "us_per_socket_second": {"node": 1.0, "redis": 0.1, "kafka": 0.6, "loadgen": 7.0},
            "us_per_socket_second_more": {"node": 0.8, "redis": 0.1, "kafka": 0.0, "loadgen": 7.0},
            "steps": [{"sockets": sockets, "us_per_connect": {"node": 100.0, "redis": 20.0, "loadgen": 70.0}, "cost": cost(node=1.5, redis=0.3, loadgen=1.0)}],
            "after_traffic": {"rss": {"node": 50 << 20}, "bytes_per_socket": {"node": 2_048.0}}}
    add("idle", idle)
    add("background", {"hold_seconds": 15.0, "sockets": 10, "cost": cost(**{part: used * 15 / 1e6 for part, used in BACKGROUND.items()})})
    for action, rates in capacity.ALONE.items():
        for rate in rates:
            add(f"day-{action}-{rate}", day(action, rate, MESSAGE if action == "sends" else {"node": 100.0, "postgres": 50.0}))
    add("groups", {"steps": [{"members": size, "saturation": traffic(100.0, {"node": 4.0, "redis": 0.5})} for size in (10, 1000)]})
    net = {part: DIRECT.get(part, 0.0) + BACKGROUND[part] / 500 + (7.0 if part == "kafka" else 0.0) for part in capacity.PARTS}
    add("absent", traffic(500.0, net))
    return results


class Documents(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.docs = Path(folder.name)
        self.results = made_up(self.docs)

    def text(self) -> str:
        report.write(self.docs, self.results)
        return (self.docs / "benchmarks.md").read_text()

    def test_medians_and_spread_of_all_runs_without_the_generator(self):
        line = next(line for line in self.text().splitlines() if "1,000 pairs, one unanswered each" in line)
        self.assertIn("**10,000** (9,000–12,000, n=3)", line)
        self.assertIn("gate met", line)
        line = next(line for line in self.text().splitlines() if "connect + JWT" in line)
        self.assertIn("| **120** (one run); node alone 100 | aim met |", line)

    def test_what_was_not_run_is_said_to_be_so(self):
        line = next(line for line in self.text().splitlines() if "10,000 sockets cut" in line)
        self.assertIn("not measured", line)

    def test_a_run_in_which_nothing_arrived_is_left_out(self):
        self.results.of("chat")[0]["report"].pop("messages_per_second")
        line = next(line for line in self.text().splitlines() if "1,000 pairs, one unanswered each" in line)
        self.assertIn("(10,000–12,000, n=2)", line)

    def test_a_fault_is_shown(self):
        self.assertIn("In all 17 runs every acknowledged", self.text())
        self.results.of("chat")[0]["faults"].append("3 messages missing")
        self.assertIn("- chat, run 1: 3 messages missing", self.text())

    def test_findings_stay_and_the_document_is_the_same_when_made_again(self):
        (self.docs / "benchmarks").mkdir(exist_ok=True)
        (self.docs / "benchmarks/findings.md").write_text("## Findings\n\nBatches are better.\n")
        first = self.text()
        self.assertIn("Batches are better.", first)
        self.results = Results(self.results.path)
        self.assertEqual(self.text(), first)

    def test_plots_are_valid_and_named_in_the_document(self):
        text = self.text()
        for plot in (self.docs / "benchmarks").glob("*.svg"):
            xml.parse(plot)
            self.assertIn(f"(benchmarks/{plot.name})", text)

    def test_capacity_is_written(self):
        capacity.write(self.docs, self.results)
        text = (self.docs / "capacity.md").read_text()
        self.assertIn("| 1 million connected | 10 million connected | 100 million connected |", text)
        self.assertIn("Not run yet", text)


class Plots(unittest.TestCase):
    def test_axes_have_round_values_that_cover_the_points(self):
        self.assertEqual(svg.ticks(0, 97, False), [0, 20, 40, 60, 80, 100])
        self.assertEqual(svg.ticks(2, 1000, True)[0], 1)
        self.assertEqual(svg.ticks(2, 1000, True)[-1], 1000)
        self.assertEqual(svg.ticks(3, 3, True), [2, 5])

    def test_higher_is_further_up(self):
        axis = svg.Axis([1, 10, 100], True, 300, 0)
        self.assertEqual([axis.at(1), axis.at(10), axis.at(100)], [300, 150, 0])


class Order(unittest.TestCase):
    def test_the_saturation_is_found_first_and_tests_take_turns(self):
        cells = cli.cells([BY_NAME["load-4000"], BY_NAME["idle"], BY_NAME["chat"], BY_NAME["steps"]], 2, 1)
        names = [(test.name, repeat) for test, repeat in cells]
        self.assertEqual(names, [("chat", 1), ("chat", 2), ("load-4000", 1), ("idle", 1), ("steps", 1), ("load-4000", 2), ("idle", 2)])

    def test_every_measure_and_curve_has_its_test(self):
        for measure in measures.MEASURES + measures.CONTRACT:
            self.assertIn(measure.test, BY_NAME)
        for test in capacity.Costs.NEEDED:
            self.assertIn(test, BY_NAME)
        for test in STANDARD:
            for scale in (Scale(), Scale(quick=True)):
                self.assertTrue(all(isinstance(str(word), str) for word in test.command(scale, 8_000.0)))


class Comparison(unittest.TestCase):
    def test_ratios_are_those_of_the_pairs(self):
        row = compare.compared("x", "µs", [100.0, 50.0, 80.0], [50.0, 50.0, 60.0])
        self.assertEqual(row[-2:], ("0.750", "0.500–1.000, n=3"))


class Model(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.results = made_up(Path(folder.name))
        self.costs = capacity.Costs(self.results)

    def test_costs_are_found_again_in_what_was_spent(self):
        near = lambda cost, part, value: self.assertAlmostEqual(cost[part], value, delta=value * 0.01 + 0.01)
        near(self.costs.socket, "node", 1.0)
        near(self.costs.direct.at(300), "postgres", 100.0)
        near(self.costs.actions["sends"].at(100), "node", 400.0)
        near(self.costs.actions["reads"].at(1), "node", 100.0)
        near(self.costs.actions["typing"].at(1_000), "postgres", 50.0)
        near(self.costs.record, "kafka", 7.0)

    def test_a_message_costs_more_with_each_recipient(self):
        costs = [sum(self.costs.message(recipients, 100).values()) for recipients in (0.5, 1, 5, 10, 50, 500)]
        self.assertEqual(costs, sorted(costs))
        self.assertAlmostEqual(costs[3], 750.0, delta=8)
        self.assertAlmostEqual(costs[4], 750.0 + 40 * 4.5, delta=10)

    def test_a_curve_is_read_between_its_points(self):
        curve = capacity.Curve([(10.0, {"node": 100.0}), (1000.0, {"node": 50.0})])
        self.assertEqual([round(curve.at(rate)["node"]) for rate in (1, 10, 100, 1000, 9999)], [100, 100, 75, 50, 50])

    def test_cores_are_a_sum(self):
        load = capacity.Load(100_000, {"typing": 100.0}, 1.0)
        cores = self.costs.cores(load, 10)
        self.assertAlmostEqual(cores["node"], (10 * 3_000 + 100_000 * 1.0 + 100 * 100) / 1e6, places=3)
        self.assertAlmostEqual(cores["kafka"], 9_000 / 1e6, places=4)

    def test_ten_times_the_users_need_about_ten_times_the_machines(self):
        assumed = capacity.Assumptions()
        one, ten = [capacity.plan(users, assumed, self.costs) for users in (1e6, 1e7)]
        self.assertGreaterEqual(ten.nodes, one.nodes * 9)
        self.assertLessEqual(ten.nodes, one.nodes * 10)
        self.assertLess(one.cores["node"] / one.nodes, assumed.node_cores * (1 - assumed.headroom) + 1e-9)

    def test_less_headroom_needs_fewer(self):
        assumed = capacity.Assumptions()
        tight = capacity.plan(1e8, replace(assumed, headroom=0.2), self.costs)
        self.assertLess(tight.postgres, capacity.plan(1e8, assumed, self.costs).postgres)

    def test_a_run_that_the_model_does_not_tell_is_found(self):
        load = capacity.Load(2_000, {"sends": 100.0}, 10.0)
        cores = self.costs.cores(load, 10)
        resident = 10 * self.costs.node_bytes + 2_000 * self.costs.socket_bytes
        run = {"per_second": {"send": 100.0}, "silent": 1_500, "users": 500, "nodes": 10, "seconds": 10.0,
               "outcome": {"acked": 1000, "delivered": 10_000, "missing": 0, "doubled": 0, "unanswered": 0},
               "cost": cost(**{part: used * 10 for part, used in cores.items()}, idlers=9.0), "memory": {"after": {"nodes": resident}}}
        self.results.add({"kind": "result", "test": "ten-nodes", "repeat": 1, "report": run, "faults": []})
        rows = capacity.agreement(self.results, self.costs)
        for _, _, model, measured in rows:
            self.assertAlmostEqual(model, measured, delta=measured * 0.01 + 1e-3)
        self.assertEqual(capacity.disagreements(rows), [])
        self.results.lines[-1]["report"]["cost"] = cost(**{part: used * 14 for part, used in cores.items()})
        self.assertEqual(capacity.disagreements(capacity.agreement(self.results, self.costs)), ["all server processes"])


if __name__ == "__main__":
    unittest.main()
