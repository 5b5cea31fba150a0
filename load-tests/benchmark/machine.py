"""What the figures were taken on: hardware, system, versions, and the settings of the stores."""

import os
import platform
import re
import resource
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SHOWN = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers", "max_wal_size", "synchronous_standby_names")


def output(*command: str, env: dict | None = None) -> str:
    """Standard output without the last line's end; an error with the command's own words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def commit() -> str:
    """Of the checkout, short; with "+" if something that is built differs from it."""
    dirty = output("git", "status", "--porcelain", "--", "src", "migrations", "Cargo.toml", "Cargo.lock", "build.rs",
                   "load-tests/client", "load-tests/loadgen")
    return output("git", "rev-parse", "--short=10", "HEAD") + ("+" if dirty else "")


def hardware() -> dict:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "system": system[1] if system else platform.system(),
        # What follows the version names the build of one host.
        "kernel": platform.release().split("-")[0],
        "open files for each process": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def versions(database: str, redis: str) -> dict:
    """Of what was really asked: the servers themselves."""
    sql = lambda text: output("psql", "-X", "-q", "-A", "-t", "-F", "=", database, "-c", text)
    names = ",".join(f"'{name}'" for name in SHOWN)
    host, port = redis.removeprefix("redis://").split("/")[0].split(":")
    info = output("redis-cli", "-h", host, "-p", port, "info", "server")
    pom = (REPO / "scripts/kafka/pom.xml").read_text()
    settings = sql(f"select name, current_setting(name) from pg_settings where name in ({names}) order by name")
    return {
        "Postgres": sql("show server_version"),
        "Postgres settings": ", ".join(f"{line}" if not line.endswith("=") else f"{line}''" for line in settings.splitlines()),
        "Redis": re.search(r"redis_version:(\S+)", info)[1] + ", saves nothing to disk",
        "Kafka": re.search(r"<kafka.version>(.*)</kafka.version>", pom)[1] + ", one broker, acks=all, metadata.max.idle.interval.ms=10000",
        "Rust": output("rustc", "--version").split()[1] + ", release build",
    }
