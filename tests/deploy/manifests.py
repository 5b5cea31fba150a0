#!/usr/bin/env python3
"""Checks compose.yaml and the manifests in k8s/ as files: by their schemas, and by what must hold between them and
the service. Prints every fault; exit code 1 if there is one.

    manifests.py [FOLDER]      FOLDER: another checkout, in which something may be broken on purpose
"""
import importlib.resources
import json
import os
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import yaml

REPO = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent.parent)
# preStop's `sleep` is on by default since 1.30.
KUBERNETES = "1.33"
OVERLAYS = ("single", "production", "migrate")
# What the stages behind the drain may take before they are cut off, more than once.
FLUSH = 30
IMAGE = "tidings"

faults = []


def check(good, where, what):
    if not good:
        faults.append(f"{where}: {what}")


def settings():
    """Every setting there is, by .env.example, which a unit test holds against the code."""
    text = (REPO / ".env.example").read_text(encoding="utf-8")
    return set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", text, re.M))


def routes():
    """Paths that a node serves to probes and to Prometheus."""
    text = (REPO / "src/http/mod.rs").read_text(encoding="utf-8")
    return {"/" + one for one in re.findall(r'\["(\w+)"\]\) ', text)}


def seconds(text):
    value, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(value) * {"ms": 0.001, "s": 1, "m": 60}[unit]


# --- compose.yaml ------------------------------------------------------------

def compose():
    """As docker compose understands it: a schema, variables, references between the parts."""
    # The program itself: what the wheel puts around it forgets its exit code.
    program = importlib.resources.files("compose") / "docker-compose"
    done = subprocess.run([program, "-f", REPO / "compose.yaml", "config", "--format", "json"], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"]})
    if done.returncode:
        return faults.append(f"compose.yaml: {done.stderr.strip()}")
    whole = json.loads(done.stdout)
    known = settings()
    for name, service in whole["services"].items():
        where = f"compose.yaml, {name}"
        ours = service["image"] == IMAGE
        environment = service.get("environment") or {}
        if ours:
            for setting in environment:
                check(setting in known, where, f"{setting} is no setting")
            check(service.get("read_only") and service.get("cap_drop") == ["ALL"], where, "may write, or has capabilities")
        else:
            check(re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"]) and not service["image"].endswith(":latest"),
                  where, "its image has no tag")
            check("test" in service.get("healthcheck", {}), where, "has no health check")
        for port in service.get("ports", []):
            check(port.get("host_ip") == "127.0.0.1", where, f"port {port['target']} is not on loopback only")
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                source = pathlib.Path(volume["source"])
                check(source.exists(), where, f"{source} does not exist")
                check(volume.get("read_only"), where, f"{source} may be written to")
        limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
        check({"cpus", "memory"} <= set(limits), where, "has no limits")
        for setting, value in environment.items():
            if re.search(r"PASSWORD|SECRET|KEY$", setting) and not re.search("_FILE$", setting):
                raw = yaml.safe_load((REPO / "compose.yaml").read_text())["services"][name].get("environment", {}).get(setting, "")
                check(value.startswith("file:") or raw.startswith("${"), where, f"{setting} holds a secret")
    for name, secret in whole.get("secrets", {}).items():
        check("/deploy/secrets/" in secret["file"], f"compose.yaml, secret {name}", "is not where git looks away")
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", (REPO / "deploy/haproxy.cfg").read_text()))
    balancer = whole["services"]["balancer"]["environment"]
    check(set(balancer) <= used, "compose.yaml, balancer", f"deploy/haproxy.cfg knows no {set(balancer) - used}")
    for node in ("NODE1", "NODE2"):
        host = balancer[node].split(":")[0]
        check(host in whole["services"], "compose.yaml, balancer", f"there is no {host}")
    nodes = whole["services"]["node1"]
    address = whole["services"]["balancer"]["networks"]["front"]["ipv4_address"]
    check(nodes["environment"]["TRUSTED_PROXIES"] == address, "compose.yaml", "the nodes do not trust the balancer's address")
    check(compose_seconds(nodes["stop_grace_period"]) >= 30 + FLUSH, "compose.yaml", "a node is killed while it drains")
    for source in ("prometheus/targets.yml", "grafana/provisioning/dashboards/tidings.yaml"):
        if not (REPO / source).exists():
            return faults.append(f"{source} is missing")
    scraped = set(re.findall(r'"(\w+):(\d+)"', (REPO / "prometheus/targets.yml").read_text()))
    wanted = {(name, nodes["environment"]["ADMIN_ADDR"].split(":")[1]) for name in ("node1", "node2")}
    check(scraped == wanted, "prometheus/targets.yml", f"scrapes {sorted(scraped)}, the nodes are {sorted(wanted)}")
    path = whole["services"]["grafana"]["volumes"]
    provider = yaml.safe_load((REPO / "grafana/provisioning/dashboards/tidings.yaml").read_text())
    check(provider["providers"][0]["options"]["path"] in [volume["target"] for volume in path],
          "compose.yaml, grafana", "the dashboards are not where the provisioning looks for them")
    return None


def compose_seconds(text):
    parts = re.findall(r"(\d+)([hms])", text)
    return sum(int(value) * {"h": 3600, "m": 60, "s": 1}[unit] for value, unit in parts)


# --- k8s ---------------------------------------------------------------------

def overlay(name):
    where = f"k8s/{name}"
    done = subprocess.run(["kubectl", "kustomize", REPO / where], capture_output=True, text=True)
    if done.returncode:
        return faults.append(f"{where}: {done.stderr.strip()}")
    things = list(yaml.safe_load_all(done.stdout))
    for thing in things:
        at = f"{where}, {thing['kind']} {thing['metadata']['name']}"
        if thing["kind"] == "PodMonitor":
            pod_monitor(at, thing, things)
            continue
        if thing["kind"] == "PrometheusRule":
            prometheus_rule(at, thing)
            continue
        try:
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as fault:
            faults.append(f"{at}: {fault.message} at {'.'.join(map(str, fault.path))}")
        except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as fault:
            faults.append(f"{at}: {fault}")
        if thing["kind"] != "Namespace":
            check(thing["metadata"].get("namespace") == "tidings", at, "is in no namespace")
    known = settings()
    maps = {thing["metadata"]["name"]: thing["data"] for thing in things if thing["kind"] == "ConfigMap"}
    for map_name, data in maps.items():
        for setting in data:
            check(setting in known, f"{where}, ConfigMap {map_name}", f"{setting} is no setting")
            check(not re.search(r"PASSWORD|DATABASE_URL|REDIS_URL|JWT_KEY", setting), where, f"{setting} is a secret")
    check(not [thing for thing in things if thing["kind"] == "Secret"], where, "holds a secret")
    for thing in things:
        if "template" in thing.get("spec", {}):
            workload(f"{where}, {thing['kind']} {thing['metadata']['name']}", thing, maps, known)
    if name != "migrate":
        policies(where, things)
    if name == "production":
        production(where, things)
    return None


def workload(at, thing, maps, known):
    labels, spec = thing["spec"]["template"]["metadata"]["labels"], thing["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    # PodSecurity `restricted`, of which a Service Account's token is no part; nodes have no use for it.
    security, own = spec.get("securityContext", {}), container.get("securityContext", {})
    check(spec.get("automountServiceAccountToken") is False, at, "gets a token for the API server")
    check(security.get("runAsNonRoot") is True and security.get("runAsUser") == 65532, at, "may be root, or is not the image's user")
    check(security.get("seccompProfile") == {"type": "RuntimeDefault"}, at, "has no seccomp profile")
    check(own.get("allowPrivilegeEscalation") is False, at, "may gain privileges")
    check(own.get("capabilities") == {"drop": ["ALL"]}, at, "has capabilities")
    check(own.get("readOnlyRootFilesystem") is True, at, "may write into its root")
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        check(not spec.get(field), at, f"has {field}")
    allowed = {"configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"}
    check(all(set(volume) - {"name"} <= allowed for volume in spec.get("volumes", [])), at, "has a volume that is not allowed")
    check(not [port for port in container.get("ports", []) if "hostPort" in port], at, "has a port of the host")
    restart = spec.get("restartPolicy", "Always")
    check(restart in (("Never", "OnFailure") if thing["kind"] == "Job" else ("Always",)), at, f"restartPolicy {restart}")
    resources = container.get("resources", {})
    check({"cpu", "memory"} <= set(resources.get("requests", {})) and "memory" in resources.get("limits", {}), at, "has no resources")
    check(re.search(r":[\w.-]+$", container["image"]) and not container["image"].endswith(":latest"), at, "its image has no tag")
    given = {entry["name"]: entry for entry in container.get("env", [])}
    values = {name: entry.get("value") for name, entry in given.items()}
    for source in container.get("envFrom", []):
        named = source["configMapRef"]["name"]
        check(named in maps, at, f"there is no ConfigMap {named}")
        values = {**maps.get(named, {}), **values}
    for setting, entry in given.items():
        check(setting in known, at, f"{setting} is no setting")
        secret = re.search(r"PASSWORD|DATABASE_URL|REDIS_URL|JWT_KEY", setting)
        check(not secret or "secretKeyRef" in entry.get("valueFrom", {}), at, f"{setting} is no reference to a secret")
    if labels["app.kubernetes.io/component"] == "node":
        node(at, spec, container, values)


def node(at, spec, container, values):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    check(ports["http"] == int(values.get("SERVER_PORT") or 8083), at, "the port is not the node's")
    check(ports["admin"] == int(values["ADMIN_ADDR"].split(":")[1]), at, "the operators' port is not the node's")
    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container.get(probe, {}).get("httpGet", {})
        paths[probe] = get.get("path")
        check(get.get("path") in routes() and get.get("port") in ports, at, f"{probe}: a node does not serve {get}")
    check(paths["livenessProbe"] == "/health", at, "liveness looks at more than the loop")
    check(paths["readinessProbe"] == "/ready", at, "readiness does not go off on a drain")
    cluster = "REDIS_URL" in values
    grace = seconds(values.get("DRAIN_GRACE", "5s" if cluster else "0s"))
    drain = seconds(values.get("DRAIN_TIME", "25s" if cluster else "1s"))
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    check(stop > 0, at, "there is no preStop")
    needed = stop + grace + drain + FLUSH
    check(spec["terminationGracePeriodSeconds"] >= needed, at, f"is killed while it drains: {needed} s are needed")
    readiness = container["readinessProbe"]
    off = readiness["periodSeconds"] * readiness.get("failureThreshold", 3)
    check(not cluster or grace >= off, at, f"sockets are closed before the probe sees it: DRAIN_GRACE {grace}, probe {off} s")


def policies(where, things):
    found = [thing["spec"] for thing in things if thing["kind"] == "NetworkPolicy"]
    deny = [one for one in found if one["podSelector"] == {}]
    check(deny and set(deny[0]["policyTypes"]) == {"Ingress", "Egress"} and not {"ingress", "egress"} & set(deny[0]),
          where, "no NetworkPolicy denies what is not allowed")
    for one in found:
        for way, side in (("ingress", "from"), ("egress", "to")):
            check(all(rule.get(side) and rule.get("ports") for rule in one.get(way, [])), where, f"a NetworkPolicy lets all in or out ({way})")
    (namespace,) = [thing for thing in things if thing["kind"] == "Namespace"]
    check(namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") == "restricted", where, "PodSecurity is not restricted")


# Of HAProxy's controller, those that we use; others count in its own ConfigMap only.
ON_INGRESS = {f"haproxy.org/{name}" for name in ("backend-config-snippet", "forwarded-for", "load-balance", "timeout-server")}


def production(where, things):
    kinds = {thing["kind"]: thing for thing in things}
    template = kinds["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    for name, selector in (("Service", kinds["Service"]["spec"]["selector"]),
                           ("PodDisruptionBudget", kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
                           ("Deployment", kinds["Deployment"]["spec"]["selector"]["matchLabels"])):
        check(selector.items() <= labels.items(), where, f"the {name} selects no node")
        check("app.kubernetes.io/component" in selector, where, f"the {name} selects the migration, too")
    for constraint in template["spec"]["topologySpreadConstraints"]:
        check(constraint["labelSelector"]["matchLabels"].items() <= labels.items(), where, "the spread counts no node")
    check("replicas" not in kinds["Deployment"]["spec"], where, "the Deployment takes back what the autoscaler did")
    scaler = kinds["HorizontalPodAutoscaler"]["spec"]
    names = (REPO / "src/telemetry/metrics.rs").read_text(encoding="utf-8")
    target = [metric["pods"] for metric in scaler["metrics"] if metric["type"] == "Pods"][0]
    check(f'"{target["metric"]["name"]}"' in names, where, f"there is no metric {target['metric']['name']}")
    data = kinds["ConfigMap"]["data"]
    check(int(target["target"]["averageValue"]) * 1.5 <= int(data.get("MAX_CONNECTIONS", 0)), where, "no room while another pod is missing")
    down = scaler["behavior"]["scaleDown"]
    check(down["stabilizationWindowSeconds"] >= 600 and down["policies"][0]["type"] == "Pods", where, "it scales down in haste")
    ingress = kinds["Ingress"]["metadata"]["annotations"]
    check(not {name for name in ingress if name.startswith("haproxy.org/")} - ON_INGRESS, where, "an annotation does nothing on an Ingress")
    snippet = dict(line.rsplit(" ", 1) for line in ingress["haproxy.org/backend-config-snippet"].splitlines())
    check(seconds(snippet["timeout tunnel"]) > 35, where, "the Ingress closes silent sockets before their ping")
    rolling = kinds["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    check(rolling["maxUnavailable"] == 0, where, "a rollout takes nodes away before new ones are ready")


# What there is of the operator's definition that we use.
ENDPOINT = {"port", "path", "interval", "scrapeTimeout", "scheme", "relabelings", "metricRelabelings"}
RELABELING = {"action", "sourceLabels", "separator", "regex", "modulus", "targetLabel", "replacement"}


def pod_monitor(at, thing, things):
    check(thing["apiVersion"] == "monitoring.coreos.com/v1", at, "is of another version")
    spec = thing["spec"]
    check(set(spec) <= {"selector", "podMetricsEndpoints", "namespaceSelector", "jobLabel", "podTargetLabels"}, at, f"fields {set(spec)}")
    (deployment,) = [one for one in things if one["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    check(spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), at, "selects no node")
    job = template["metadata"]["labels"].get(spec.get("jobLabel"))
    asked = set(re.findall(r'job="(\w+)"', (REPO / "prometheus/alerts.yml").read_text(encoding="utf-8")))
    check(asked == {job}, at, f"alerts ask for the jobs {asked}, and it gives {job}")
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    for endpoint in spec["podMetricsEndpoints"]:
        check(set(endpoint) <= ENDPOINT, at, f"fields {set(endpoint) - ENDPOINT}")
        check(endpoint["port"] in ports and endpoint["port"] == "admin", at, "looks at a port without metrics")
        check(endpoint["path"] == "/metrics" and "/metrics" in routes(), at, f"{endpoint['path']} is no path of a node")
        check(re.fullmatch(r"\d+s", endpoint.get("interval", "")), at, "has no interval")
        for relabeling in endpoint.get("relabelings", []):
            check(set(relabeling) <= RELABELING, at, f"fields {set(relabeling) - RELABELING}")


def prometheus_rule(at, thing):
    check(thing["apiVersion"] == "monitoring.coreos.com/v1", at, "is of another version")
    files = [yaml.safe_load((REPO / "prometheus" / name).read_text(encoding="utf-8")) for name in ("rules.yml", "alerts.yml")]
    check(thing["spec"] == {"groups": [group for file in files for group in file["groups"]]}, at, "is not what prometheus/ says")


def main():
    compose()
    for name in OVERLAYS:
        overlay(name)
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(f"manifests: {len(faults)} faults")
    print(f"manifests: compose.yaml and {', '.join('k8s/' + name for name in OVERLAYS)} hold what they must")


if __name__ == "__main__":
    main()
