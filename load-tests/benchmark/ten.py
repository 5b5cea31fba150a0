"""Ten nodes on one machine, as many sockets as it takes, a mixed day: held against what the model says for that load."""

import json
import re
import time
from pathlib import Path

from . import capacity, machine, stage
from .results import Results, now
from .stage import Failed, Stage, finished, log

NODES = 10
ACTIONS = {"sends": 250, "typing": 100, "reads": 150, "reconnects": 20, "pages": 30, "syncs": 20}


def arguments(commands) -> None:
    parser = commands.add_parser("ten-nodes", help="ten nodes on this machine, measured for docs/capacity.md")
    parser.add_argument("--sockets", type=int, default=12_000, metavar="N", help="silent ones at each node (12,000)")
    parser.add_argument("--users", type=int, default=4_000, metavar="N", help="others, who live their day over all nodes (4,000)")
    parser.add_argument("--seconds", type=int, default=50, help="of that day; two turns of the heartbeats (50)")
    parser.add_argument("--warm", type=int, default=15, metavar="SECONDS", help="of the same before that, so that connections and statements are in use (15)")
    parser.add_argument("--quick", action="store_true", help="few sockets and seconds")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of docs")
    parser.add_argument("--binary", type=Path, help="the node's, instead of this checkout's release build")
    parser.set_defaults(run=ten)


def ten(options) -> int:
    if options.quick:
        options.sockets, options.users, options.seconds, options.warm = 300, 300, 5, 2
    docs = options.out or (machine.REPO / "load-tests/results/quick" if options.quick else machine.REPO / "docs")
    binaries = stage.build(packages=("loadgen",) if options.binary else ("tidings", "loadgen"))
    results = Results(docs / "benchmarks/results.jsonl")
    results.forget({"ten-nodes"})
    with Stage() as ours, ours.nodes(options.binary or binaries / "tidings", count=NODES) as nodes:
        time.sleep(3)
        before = memory(ours, nodes)
        log(f"opening {options.sockets} silent sockets at each of {NODES} nodes")
        idlers = [silent(ours, binaries / "loadgen", node, options.sockets) for node in nodes]
        try:
            for process in idlers:
                wait_for(process, "sockets held")
            held = memory(ours, nodes)
            log(f"{options.users} others live for {options.seconds} s")
            day(ours, binaries / "loadgen", nodes, idlers, options.users // 4, options.warm)
            found = day(ours, binaries / "loadgen", nodes, idlers, options.users, options.seconds)
            after = memory(ours, nodes)
        finally:
            for process in idlers:
                process.terminate()
                process.wait()
    faults = found.pop("faults")
    results.add({
        "kind": "result", "test": "ten-nodes", "repeat": 1, "commit": machine.commit(), "at": now(), "faults": faults,
        "command": ["day", "--users", str(options.users), *words()],
        "report": {**found, "nodes": NODES, "silent": options.sockets * NODES, "users": options.users, "memory": {"before": before, "held": held, "after": after}},
    })
    for fault in faults:
        log(f"FAULT {fault}")
    capacity.write(docs, results)
    log(f"wrote {docs}/capacity.md")
    return 1 if faults else 0


def words() -> list[str]:
    return [word for name, rate in ACTIONS.items() for word in (f"--{name}", str(rate))]


def silent(ours: Stage, loadgen: Path, node, sockets: int):
    """A generator that holds so many sockets until it is stopped. What it says goes to a file."""
    import subprocess

    said = open(ours.work / f"silent-{node.name}", "wb")
    command = ["idle", "--url", node.url, "--sockets", sockets, "--rate", "200", "--hold", "60m", "--pid", f"node={node.process.pid}"]
    process = subprocess.Popen([str(word) for word in (loadgen, *command)], stdout=said, stderr=said)
    process.said = Path(said.name)
    return process


def wait_for(process, text: str) -> None:
    deadline = time.monotonic() + 600
    while text not in process.said.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed("a generator of silent sockets: " + process.said.read_text()[-500:])
        time.sleep(0.2)
    if failed := re.search(r"[1-9]\d* failed", process.said.read_text()):
        raise Failed(f"{process.said.name}: {failed[0]}")


def day(ours: Stage, loadgen: Path, nodes: list, idlers: list, users: int, seconds: int) -> dict:
    urls = [word for node in nodes for word in ("--url", node.url)]
    command = ["day", *urls, "--users", users, "--conversations", users // 2, "--seconds", seconds, "--settle", "8s", *words()]
    command += ["--pid", "idlers=" + ",".join(str(process.pid) for process in idlers)]
    return finished(*ours.begin_loadgen(loadgen, command, nodes))


def memory(ours: Stage, nodes: list) -> dict:
    """Bytes: resident of all nodes together, used by Redis, and the kernel's for all sockets of the machine, both ends."""
    resident = 0
    for node in nodes:
        rollup = Path(f"/proc/{node.process.pid}/smaps_rollup").read_text()
        resident += int(re.search(r"^Rss:\s*(\d+) kB", rollup, re.M)[1]) * 1024
    address = ours.env["REDIS_URL"].removeprefix("redis://").split("/")[0]
    host, port = address.split(":")
    info = machine.output("redis-cli", "-h", host, "-p", port, "info", "memory")
    slab = re.search(r"^Slab:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return {"nodes": resident, "redis": int(re.search(r"used_memory:(\d+)", info)[1]), "slab": int(slab[1]) * 1024}
