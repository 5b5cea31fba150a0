#!/usr/bin/env python3
"""Runs the image as README.md says, and as little trusted as can be, and looks at what it does.

    image.py --docker PATH --image tidings:test        PATH: a client of the engine, whose ports are in this network

`scripts/image test` starts it beside an engine that has a network namespace of its own.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPO / "tests/contract"))
from blackbox import WS, http, uid, until  # noqa: E402

# Of the `ci` profile, whose code is larger than a release's.
MAX_IMAGE_BYTES = 160 << 20
UID = "65532"


class Engine:
    def __init__(self, client):
        self.client = client

    def __call__(self, *arguments, code=0):
        """What it says, both streams; an error if it ends with another code."""
        done = subprocess.run([self.client, *arguments], capture_output=True, text=True, timeout=120)
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"docker {' '.join(arguments)}: {done.returncode}\n{said}"
        return said

    def inspect(self, what, form):
        return json.loads(self("inspect", "--format", "{{json %s}}" % form, what))

    def healthy(self, name):
        if not until(lambda: self.inspect(name, ".State.Health.Status") == "healthy", 60):
            raise AssertionError(f"{name} is {self.inspect(name, '.State')}\n{self('logs', name)[-2000:]}")


def token(key, user):
    made = subprocess.run([REPO / "scripts/token", user], env={**os.environ, "JWT_KEY": key}, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return {"Authorization": "Bearer " + made.stdout.strip()}


def chat(port, ada, grace):
    """Ada and Grace, each by the headers that tell who asks: a message by HTTP that arrives on a socket.
    Returns the socket, the path of the history, and the message's id."""
    made = http(port, "POST", "/api/v1/conversations", headers=ada, body={"kind": "group", "title": "x", "participants": [grace[0]]})
    assert made.status == 201, made
    conversation = made["id"]
    socket = WS(port, device="phone", headers=grace[1])
    assert socket.wait("hello"), socket.tail()
    sent = http(port, "POST", "/api/v1/messages", headers=ada, body={
        "conversation_id": conversation, "message_type": "text", "content": "Hello", "client_message_id": uid()})
    assert sent.status == 201, sent
    got = socket.wait("new_message", lambda payload: payload["message"]["id"] == sent["id"])
    assert got and got["message"]["content"] == "Hello", socket.tail()
    return socket, f"/api/v1/conversations/{conversation}/messages", sent["id"]


def looks(docker, image):
    config = docker.inspect(image, ".Config")
    size = docker.inspect(image, ".Size")
    assert config["User"] == f"{UID}:{UID}", config
    assert config["Entrypoint"] == ["/usr/local/bin/tidings"] and not config["Cmd"], config
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/tidings", "health"], config
    assert config["StopSignal"] == "SIGTERM" and list(config["Volumes"]) == ["/data"], config
    assert size < MAX_IMAGE_BYTES, f"{size} bytes"
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", image, "-c", "true", code=127)
    assert "no such file" in said, said
    print(f"image: {size / 1e6:.0f} MB, user {UID}, no shell")


def refuses(docker, image):
    """What is wrong is named, and the exit code is that of a wrong setting."""
    said = docker("run", "--rm", "--network", "none", image, code=64)
    assert "AUTH_MODE" in said and "SERVER_HOST" in said, said
    said = docker("run", "--rm", "--network", "none", "-e", "AUTH_MODE=jwt", "-e", "SERVER_PORT=eighty", image, code=64)
    assert "JWT_KEY" in said and "SERVER_PORT" in said, said
    said = docker("run", "--rm", "--network", "none", "-e", "AUTH_MODE=gateway", "-e", "TRUSTED_PROXIES=10.0.0.1", image, "health", code=1)
    assert "127.0.0.1:8083 does not answer" in said, said
    print("image: wrong settings are named")


def readme_says(docker, image):
    """The commands of README.md, of which only the build was done before; over a restart with the same volume."""
    text = (REPO / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(docker build .*?)^```$", text, re.M | re.S)
    build, commands = block.split("\n", 1)
    assert build == "docker build -t tidings .", build
    run = next(line for line in commands.replace("\\\n", " ").splitlines() if line.startswith("docker run "))
    docker("tag", image, "tidings")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{os.path.dirname(docker.client)}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env={**os.environ, "PATH": path},
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        docker.healthy("tidings")
        key = re.search(r"^JWT_KEY=(.*)$", (pathlib.Path(folder) / ".env").read_text(), re.M)[1]
    ada, grace = token(key, uid()), uid()
    grace = grace, token(key, grace)
    assert http(8083, "GET", "/api/v1/conversations").status == 401
    assert http(8083, "GET", "/api/v1/conversations", user=grace[0]).status == 401, "X-User-ID is believed"
    socket, history, message = chat(8083, ada, grace)
    uids = {line.split()[0] for line in docker("top", "tidings", "-o", "uid,pid").splitlines()[1:]}
    assert uids == {UID}, uids
    assert docker("exec", "tidings", "/usr/local/bin/tidings", "health").strip() == "ok"
    docker("stop", "--time", "30", "tidings")
    assert socket.wait_close() == 1012, socket.tail()
    state = docker.inspect("tidings", ".State")
    assert state["ExitCode"] == 0 and not state["OOMKilled"], state
    log = docker("logs", "tidings")
    assert '"stopped"' in log and "panicked" not in log, log[-2000:]
    docker("start", "tidings")
    docker.healthy("tidings")
    kept = http(8083, "GET", history, headers=ada)
    assert kept.status == 200 and message in [one["id"] for one in kept["messages"]], kept
    docker("rm", "--force", "--volumes", "tidings")
    print(f"image: {' '.join(run.split())}: healthy, messages arrive, SIGTERM drains, what was said is kept")


def locked_up(docker, image):
    """Nothing that it does not need, on the machine's own network, behind a gateway that names the users."""
    docker("run", "--detach", "--name", "locked", "--network", "host", "--read-only", "--cap-drop", "ALL",
           "--security-opt", "no-new-privileges", "--memory", "256m", "--cpus", "1", "--pids-limit", "64",
           "-e", "SERVER_HOST=127.0.0.1", "-e", "SERVER_PORT=8099", "-e", "AUTH_MODE=gateway", "-e", "TRUSTED_PROXIES=127.0.0.1",
           "-e", "ADMIN_ADDR=127.0.0.1:9099", image)
    docker.healthy("locked")
    grace = uid()
    socket, _, _ = chat(8099, {"X-User-ID": uid()}, (grace, {"X-User-ID": grace}))
    assert http(9099, "GET", "/metrics").body.count(b"tidings_sockets_open 1\n") == 1
    docker("kill", "--signal", "TERM", "locked")
    assert socket.wait_close() == 1012, socket.tail()
    assert docker("wait", "locked").strip() == "0", docker("logs", "locked")[-2000:]
    docker("rm", "--force", "--volumes", "locked")
    print("image: so it does with a read-only root, no capability, 256 MB, one core and 64 threads")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--docker", required=True)
    parser.add_argument("--image", required=True)
    given = parser.parse_args()
    docker = Engine(given.docker)
    try:
        for check in (looks, refuses, readme_says, locked_up):
            check(docker, given.image)
    finally:
        docker("rm", "--force", "--volumes", "tidings", "locked", code=None)
        docker("volume", "rm", "--force", "tidings", code=None)


if __name__ == "__main__":
    main()
