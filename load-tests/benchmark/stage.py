"""What a measurement stands on: the services, a fresh database, fresh nodes of a release build, and runs of loadgen."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

REPO = Path(__file__).resolve().parents[2]
SERVICES = ("postgres", "redis", "kafka")
KEY = "the-secret-that-load-tests-sign-with"
DATABASE, TOPIC = "tidings_bench", "tidings.bench"
READY_SECONDS, END_SECONDS, LOADGEN_SECONDS = 30, 60, 900
# Few users do what many would; and nobody waits for a drain.
NODE = {"RATE_SENDS_PER_USER": "0", "RATE_SYNCS_PER_USER": "0", "RATE_TYPING_PER_USER": "0", "MIGRATE_ON_START": "true", "DRAIN_GRACE": "0s", "DRAIN_TIME": "1s"}


class Failed(Exception):
    """The run could not be made; says why."""


def log(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(*command, quiet: bool = False, env: dict | None = None) -> str:
    """Standard output of a command that must succeed; what it says on stderr is shown unless `quiet`."""
    stderr = subprocess.PIPE if quiet else None
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=REPO, env=env)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode} {done.stderr or ''}".strip())
    return done.stdout


def free_port() -> int:
    """Below the range from which the kernel takes the ports of outgoing connections."""
    for _ in range(100):
        port = SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise Failed("found no free port between 20000 and 31999")


def build(tree: Path = REPO, target: Path | None = None, packages=("tidings", "loadgen")) -> Path:
    """Builds for release; the folder of the binaries."""
    env = {**os.environ, **({"CARGO_TARGET_DIR": str(target)} if target else {})}
    names = [word for package in packages for word in ("-p", package)]
    log(f"building {' and '.join(packages)} of {tree.name}")
    if subprocess.run(["cargo", "build", "--release", "--quiet", *names], cwd=tree, env=env).returncode:
        raise Failed("cargo build failed")
    return (target or Path(env.get("CARGO_TARGET_DIR", tree / "target"))) / "release"


@dataclass(frozen=True)
class Node:
    name: str
    url: str
    process: subprocess.Popen
    # Where it serves its metrics, if that is another address.
    admin: str | None
    settings: dict


class Stage:
    """The services: those that ran before stay when it is left."""

    def __enter__(self):
        self.own = subprocess.run([REPO / "scripts/services", "status"], capture_output=True, cwd=REPO).returncode != 0
        exports = run(REPO / "scripts/services", "up")
        self.env = dict(re.findall(r"^export (\w+)=(.*)$", exports, re.M))
        self.pids = {name: self.pid(name) for name in SERVICES}
        self.work = Path(tempfile.mkdtemp(prefix="tidings-bench-"))
        self.count = 0
        return self

    def pid(self, service: str) -> int:
        status = run(REPO / "scripts/services", "status", service)
        return int(re.search(r"pid (\d+)", status)[1])

    def __exit__(self, kind, *_):
        try:
            self.drop()
        finally:
            if self.own:
                run(REPO / "scripts/services", "down")
        if kind is None:
            run("rm", "-rf", self.work)
        else:
            log(f"the nodes' logs: {self.work}")

    @property
    def database(self) -> str:
        return self.env["DATABASE_URL"].rpartition("/")[0] + "/" + DATABASE

    def sql(self, text: str) -> str:
        return run("psql", "-X", "-q", "-A", "-t", self.env["DATABASE_URL"], "-c", text)

    def drop(self) -> None:
        # Refused while an autovacuum of another role is at work on it, which ends by itself.
        for last in (False,) * 20 + (True,):
            try:
                run("psql", "-X", "-q", self.env["DATABASE_URL"], "-c", f"drop database if exists {DATABASE} with (force)", quiet=not last)
                return
            except Failed:
                if last:
                    raise
                time.sleep(1)

    @contextmanager
    def nodes(self, binary: Path, *, cluster: bool = True, jwt: bool = False, count: int = 1, settings: dict | None = None):
        """So many fresh nodes on an empty store; they are stopped, and must end well, at the end."""
        shared = dict(NODE)
        self.count += 1
        if cluster:
            self.drop()
            self.sql(f"create database {DATABASE}")
            # Presence of a run before would still be valid for some seconds: so each has names of its own.
            shared |= {
                "DATABASE_URL": self.database,
                "REDIS_URL": self.env["REDIS_URL"],
                "REDIS_PREFIX": f"bench-{os.getpid()}-{self.count}",
                "KAFKA_BROKERS": self.env["KAFKA_BROKERS"],
                "KAFKA_OFFLINE_TOPIC": TOPIC,
            }
        shared |= settings or {}
        nodes: list[Node] = []
        try:
            for at in range(count):
                nodes.append(self.start(binary, f"node{at + 1}" if count > 1 else "node", f"127.0.0.{at + 1}", shared, jwt))
            yield nodes
            if ended := [node.name for node in nodes if node.process.poll() is not None]:
                raise Failed(f"{ended} ended unasked, see {self.work}")
        finally:
            for node in nodes:
                node.process.terminate()
            ends = [self.end(node) for node in nodes]
        if any(ends):
            raise Failed(f"nodes ended with {ends}, see {self.work}")

    def start(self, binary: Path, name: str, host: str, settings: dict, jwt: bool) -> Node:
        folder = self.work / f"{self.count}-{name}"
        folder.mkdir()
        port = free_port()
        own = {"PATH": os.environ["PATH"], "DATA_DIR": str(folder), "SERVER_HOST": host, "SERVER_PORT": str(port)}
        admin = None
        if jwt:
            admin = f"127.0.0.1:{free_port()}"
            own |= {"AUTH_MODE": "jwt", "JWT_KEY": KEY, "ADMIN_ADDR": admin}
        with open(folder / "log", "wb") as output:
            process = subprocess.Popen([binary], env={**own, **settings}, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        node = Node(name, f"http://{host}:{port}", process, admin and f"http://{admin}", settings)
        deadline = time.monotonic() + READY_SECONDS
        while not answers(node.url + "/ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise Failed(f"{name} did not get ready: " + (folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        return node

    def end(self, node: Node) -> int:
        try:
            return node.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            node.process.kill()
            return node.process.wait()

    def loadgen(self, binary: Path, command: list[str], nodes: list[Node], *, cluster: bool = True, jwt: bool = False) -> dict:
        """The report of one run, which may hold faults; all `nodes` are accounted for as one process."""
        return finished(*self.begin_loadgen(binary, command, nodes, cluster=cluster, jwt=jwt))

    def begin_loadgen(self, binary: Path, command: list[str], nodes: list[Node], *, cluster: bool = True, jwt: bool = False):
        watched = ["--pid", "node=" + ",".join(str(node.process.pid) for node in nodes)]
        if cluster:
            watched += [word for name, pid in self.pids.items() for word in ("--pid", f"{name}={pid}")]
        proof = ["--jwt-key", KEY] if jwt else []
        self.count += 1
        report = self.work / f"report-{self.count}.json"
        words = [str(word) for word in (binary, *command, *watched, *proof, "--json", report)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), report


def finished(process: subprocess.Popen, report: Path) -> dict:
    try:
        _, errors = process.communicate(timeout=LOADGEN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failed(f"loadgen was not done after {LOADGEN_SECONDS} s") from None
    if process.returncode not in (0, 1):
        raise Failed(f"loadgen ended with {process.returncode}: {errors.strip()[-1000:]}")
    return json.loads(report.read_text())


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
