"""Two commits, or two settings of one, in one go: A B A B, so that both see the same machine."""

import os
import shutil
import subprocess
from pathlib import Path
from statistics import median

from . import stage, svg
from .measures import MEASURES, per_unit, softirq
from .stage import REPO, Failed, Stage, log, run
from .tests import BY_NAME, Scale


def arguments(commands) -> None:
    parser = commands.add_parser("compare", help="two commits or settings, A B A B")
    parser.add_argument("a", metavar="A", help="a commit, or . for the checkout as it is")
    parser.add_argument("b", metavar="B", help="the other one; the same where only settings differ")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of B's node")
    parser.add_argument("--setting-a", action="append", default=[], metavar="NAME=VALUE", help="of A's node")
    parser.add_argument("--only", nargs="+", default=["chat"], metavar="NAME", help="tests of the standard set (chat)")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="how often each (3)")
    parser.add_argument("--saturation", type=float, metavar="PER_SECOND", help="for tests whose rate follows from it")
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.set_defaults(run=compare)


def compare(options) -> int:
    from .cli import measured

    if missing := [name for name in options.only if name not in BY_NAME]:
        raise Failed(f"there is no test {missing[0]}; load-tests/bench list shows them")
    tests = [BY_NAME[name] for name in options.only]
    if not options.saturation and any(test.follows for test in tests):
        raise Failed("the rates of these tests follow from --saturation")
    loadgen = stage.build(packages=("loadgen",)) / "loadgen"
    sides = {
        "A": (binary_of(options.a), settings(options.setting_a)),
        "B": (binary_of(options.b), settings(options.setting)),
    }
    scale = Scale(options.quick)
    reports: dict = {(side, test.name): [] for side in sides for test in tests}
    with Stage() as ours:
        for turn in range(options.pairs):
            for test in tests:
                # The second one may profit from a warm machine: so it is another one each time.
                for side in sorted(sides, reverse=bool(turn % 2)):
                    binary, more = sides[side]
                    own = stage_test(test, more)
                    found = measured(ours, loadgen, binary, own, scale, options.saturation or 0.0)
                    reports[side, test.name].append(found["report"])
                    log(f"{turn + 1} of {options.pairs}: {side} {test.name}{''.join('; FAULT ' + fault for fault in found['faults'])}")
    print(f"A: {options.a} {' '.join(options.setting_a)}\nB: {options.b} {' '.join(options.setting)}\n")
    print(table(reports, [test.name for test in tests], options.pairs))
    return 0


def stage_test(test, more: dict):
    from dataclasses import replace

    return replace(test, settings={**test.settings, **more})


def settings(words: list[str]) -> dict:
    if wrong := [word for word in words if "=" not in word]:
        raise Failed(f"{wrong[0]}: expected NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def table(reports: dict, tests: list[str], pairs: int) -> str:
    """For each measure of these tests the medians, and B / A: the median of the pairs' ratios, with the lowest and highest."""
    rows = [("measure", "unit", "A", "B", "B / A", "of the pairs")]
    for measure in [measure for measure in MEASURES if measure.test in tests]:
        rows.append(compared(measure.name.split(",")[0].split(";")[0], measure.unit, *[[measure.value(one) for one in reports[side, measure.test]] for side in "AB"]))
        if measure.cost and measure.unit == "µs":
            values = [[per_unit(measure, one, softirq) for one in reports[side, measure.test]] for side in "AB"]
            rows.append(compared("  softirq", measure.unit, *values))
        for name, value in measure.beside:
            rows.append(compared(f"  {name}", "", *[[value(one) for one in reports[side, measure.test]] for side in "AB"]))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def compared(name: str, unit: str, a: list[float], b: list[float]) -> tuple:
    ratios = [right / left for left, right in zip(a, b) if left]
    if not ratios:
        return (name, unit, svg.number(median(a)), svg.number(median(b)), "", "")
    return (name, unit, svg.number(median(a)), svg.number(median(b)), f"{median(ratios):.3f}", f"{min(ratios):.3f}–{max(ratios):.3f}, n={len(ratios)}")


def binary_of(ref: str) -> Path:
    """The release binary of a commit, built once and kept under its id; `.`: of the checkout, changes included."""
    if ref == ".":
        return stage.build(packages=("tidings",)) / "tidings"
    commit = run("git", "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", quiet=True).strip()
    state = Path(os.environ.get("TIDINGS_STATE", REPO / ".state")).resolve() / "bench"
    kept = state / "binaries" / commit
    if kept.exists():
        return kept
    tree, target = state / "tree", state / "target"
    seed(target)
    subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=REPO, capture_output=True)
    subprocess.run(["git", "worktree", "prune"], cwd=REPO, capture_output=True)
    run("git", "worktree", "add", "--detach", "--force", tree, commit, quiet=True)
    try:
        built = stage.build(tree, target, packages=("tidings",)) / "tidings"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, kept)
    finally:
        run("git", "worktree", "remove", "--force", tree, quiet=True)
    return kept


def seed(target: Path) -> None:
    """What the checkout's own build made of other people's crates saves minutes."""
    source = REPO / "target/release"
    if target.exists() or not source.exists():
        return
    (target / "release").mkdir(parents=True)
    for part in (".fingerprint", "build", "deps"):
        run("cp", "-a", "--reflink=auto", source / part, target / "release" / part)
