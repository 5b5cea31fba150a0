"""The commands of load-tests/bench."""

import argparse
import sys
import time
from pathlib import Path

from . import compare, machine, report, stage, ten
from .results import Results, now
from .stage import Failed, Stage, log
from .tests import BY_NAME, LIMITS, STANDARD, Scale, Test

REPO = Path(__file__).resolve().parents[2]


def main() -> int:
    options = arguments().parse_args()
    try:
        return options.run(options)
    except (Failed, RuntimeError) as failed:
        log(str(failed))
        return 2
    except KeyboardInterrupt:
        log("interrupted; what is done is kept: --resume goes on")
        return 130


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="load-tests/bench", description="Runs the standard set and writes docs/benchmarks.md.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each test of the table (5)")
    parser.add_argument("--curves", type=int, default=1, metavar="N", help="runs of each point of the curves (1)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these tests, or those that begin so with a * at the end; the others' results stay")
    parser.add_argument("--resume", action="store_true", help="run what is missing of the results that there are")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes and one run of each: shows that all works, and no more")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of docs (with --quick: of load-tests/results/quick)")
    parser.add_argument("--binary", type=Path, help="the node's, instead of this checkout's release build")
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(metavar="COMMAND", title="instead of running the standard set")
    again = commands.add_parser("report", help="make the documents anew from the results that there are")
    again.set_defaults(run=rebuild)
    names = commands.add_parser("list", help="the tests of the standard set")
    names.set_defaults(run=show)
    compare.arguments(commands)
    ten.arguments(commands)
    return parser


def folder(options) -> Path:
    return options.out or (REPO / "load-tests/results/quick" if options.quick else REPO / "docs")


def rebuild(options) -> int:
    docs = folder(options)
    report.write(docs, Results(docs / "benchmarks/results.jsonl"))
    log(f"wrote {docs}/benchmarks.md")
    return 0


def show(_options) -> int:
    for test in STANDARD:
        print(f"{test.name:20} {test.about}")
    return 0


def chosen(names: list[str] | None) -> list[Test]:
    if not names:
        return STANDARD
    fits = lambda test, name: test.name.startswith(name[:-1]) if name.endswith("*") else test.name == name
    for name in names:
        if not any(fits(test, name) for test in STANDARD):
            raise Failed(f"there is no test {name}; load-tests/bench list shows them")
    return [test for test in STANDARD if any(fits(test, name) for name in names)]


def cells(tests: list[Test], repeats: int, curves: int) -> list[tuple[Test, int]]:
    """In turn, so that a slow hour of the machine touches all tests alike; first those that others follow."""
    all_cells = [(test, repeat) for test in tests for repeat in range(1, (curves if test.curve else repeats) + 1)]
    return sorted(all_cells, key=lambda cell: (cell[0].name not in LIMITS, cell[1]))


def run(options) -> int:
    tests = chosen(options.only)
    scale = Scale(options.quick)
    docs = folder(options)
    results = Results(docs / "benchmarks/results.jsonl")
    repeats, curves = (1, 1) if options.quick else (options.repeats, options.curves)
    binaries = stage.build(packages=("loadgen",) if options.binary else ("tidings", "loadgen"))
    node = options.binary or binaries / "tidings"
    if not options.resume:
        results.forget({test.name for test in tests})
    todo = [(test, repeat) for test, repeat in cells(tests, repeats, curves) if not results.has(test.name, repeat)]
    log(f"{len(todo)} runs")
    started, failed = time.monotonic(), 0
    with Stage() as ours:
        commit = machine.commit()
        facts = {"machine": machine.hardware(), "versions": machine.versions(ours.env["DATABASE_URL"], ours.env["REDIS_URL"])}
        results.setup({"commit": commit, **facts, "node": stage.NODE, **({"quick": True} if options.quick else {})})
        for at, (test, repeat) in enumerate(todo):
            saturation = (results.rate(test.follows) or 0.0) if test.follows else 0.0
            if test.follows and not saturation:
                raise Failed(f"{test.name} follows from the results of the test {test.follows}: run that first")
            if not test.fits(saturation):
                continue
            begun = time.monotonic()
            try:
                found = measured(ours, binaries / "loadgen", node, test, scale, saturation)
            except Failed as why:
                # The others may well go; --resume makes up for this one.
                log(f"{at + 1} of {len(todo)}: {test.name}, run {repeat}: {why}")
                failed += 1
                continue
            faults = [fault for fault in found.pop("faults") if not fault.startswith(test.forgiven)]
            failed += bool(faults)
            results.add({"kind": "result", "test": test.name, "repeat": repeat, "commit": commit, "at": now(), "faults": faults, **found})
            log(f"{at + 1} of {len(todo)}: {test.name}, run {repeat}: {time.monotonic() - begun:.0f} s{''.join('; FAULT ' + fault for fault in faults)}")
    log(f"{(time.monotonic() - started) / 60:.1f} minutes")
    report.write(docs, results)
    log(f"wrote {docs}/benchmarks.md")
    return 1 if failed else 0


def seconds_of(command: list[str], seconds: int) -> list[str]:
    """The command, but for so long."""
    at = command.index("--seconds") + 1
    return [*command[:at], str(seconds), *command[at + 1:]]


def measured(ours: Stage, loadgen: Path, binary: Path, test: Test, scale: Scale, saturation: float) -> dict:
    """One run: the command, its report, the faults of it."""
    command = [str(word) for word in test.command(scale, saturation)]
    with ours.nodes(binary, cluster=test.cluster, jwt=test.jwt, settings=test.settings) as nodes:
        real = [word.replace("{database}", ours.database) for word in command]
        admin = ["--metrics", nodes[0].admin] if nodes[0].admin and test.name.startswith("history") else []
        if test.warm:
            ours.loadgen(loadgen, [*seconds_of(real, scale.of(*test.warm)), "--url", nodes[0].url], nodes, cluster=test.cluster, jwt=test.jwt)
        found = ours.loadgen(loadgen, [*real, "--url", nodes[0].url, *admin], nodes, cluster=test.cluster, jwt=test.jwt)
    return {"command": command, "faults": found.pop("faults"), "report": found}
