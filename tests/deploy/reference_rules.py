"""What one object says of another, or of the code, is true. A rule yields what is not."""

from collections.abc import Iterator

from service.settings import Settings
from tests.deploy import known
from tests.deploy.manifests import OURS, ROLES, Objects, Rule, of_kind, processes, selects, settings, workloads
from tests.deploy.secrets_script import made_by_the_script

_UNSHOWN = (*known.CALLBACKS, "/livez", "/readyz", "/metrics", "/docs", "/openapi.json")


def selectors_match_pods(objects: Objects) -> Iterator[str]:
    """Each Service, budget and autoscaler has something to act on."""
    pods = list(workloads(objects))
    for one in of_kind(objects, "Service"):
        if not any(selects({"matchLabels": one["spec"]["selector"]}, pod.labels) for pod in pods):
            yield f"Service {one['metadata']['name']} has no pods"
    for one in of_kind(objects, "PodDisruptionBudget", "PodMonitor"):
        operated = {"whatsapp-qr-rabbitmq", "whatsapp-qr-postgres"}.intersection([one["metadata"]["name"]])
        if not operated and not any(selects(one["spec"]["selector"], pod.labels) for pod in pods):
            yield f"{one['kind']} {one['metadata']['name']} has no pods"
    names = {(pod.object["kind"], pod.name) for pod in pods}
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in names:
            yield f"{one['kind']} {one['metadata']['name']} has nothing to scale"


def ports_meet(objects: Objects) -> Iterator[str]:
    """What a Service, a probe or a monitor names is a port of the pods behind it."""
    for one in of_kind(objects, "Service"):
        selector = {"matchLabels": one["spec"]["selector"]}
        ports = {port["targetPort"] for port in one["spec"]["ports"]}
        if not all(ports <= set(pod.ports) for pod in workloads(objects) if selects(selector, pod.labels)):
            yield f"Service {one['metadata']['name']} leads to {ports}"
    for pod in workloads(objects):
        for container in pod.containers:
            probes = [container.get(f"{kind}Probe", {}) for kind in ("startup", "liveness", "readiness")]
            probed = {
                how["port"] for probe in probes for how in probe.values() if isinstance(how, dict) and "port" in how
            }
            if not probed <= set(pod.ports):
                yield f"{pod.name} is probed at {probed}"
    for one in of_kind(objects, "PodMonitor"):
        ports = {endpoint["port"] for endpoint in one["spec"]["podMetricsEndpoints"]}
        if not all(
            ports <= set(pod.ports) for pod in workloads(objects) if selects(one["spec"]["selector"], pod.labels)
        ):
            yield f"PodMonitor {one['metadata']['name']} scrapes {ports}"


def ports_are_those_of_the_settings(objects: Objects) -> Iterator[str]:
    """A process listens where its pod says."""
    for pod in processes(objects):
        wanted = (
            {"http": "HTTP_PORT", "internal": "INTERNAL_PORT"} if pod.role == "ingress" else {"http": "HEALTH_PORT"}
        )
        found = settings(objects)
        if pod.ports != {name: int(found.get(setting, 0)) for name, setting in wanted.items()}:
            yield f"{pod.name} has ports {pod.ports}"


def probed_paths_exist(objects: Objects) -> Iterator[str]:
    """What is probed or scraped is a path of the process."""
    for pod in processes(objects):
        (container,) = pod.containers
        paths = {
            container.get(f"{kind}Probe", {}).get("httpGet", {}).get("path")
            for kind in ("startup", "liveness", "readiness")
        }
        for one in of_kind(objects, "PodMonitor"):
            if selects(one["spec"]["selector"], pod.labels):
                paths |= {endpoint["path"] for endpoint in one["spec"]["podMetricsEndpoints"]}
        unknown = {path for path in paths - {None} if path not in known.paths(pod.role)}
        if unknown:
            yield f"{pod.name} does not serve {unknown}"


def arguments_are_commands(objects: Objects) -> Iterator[str]:
    """Each container's arguments are a command of `whatsapp-qr`; a role's is its name."""
    for pod in workloads(objects):
        if not pod.ours:
            continue
        (container,) = pod.containers
        arguments = container.get("args", [])
        if not known.is_command(arguments) or (pod.role in ROLES and arguments != [pod.role]):
            yield f"{pod.name} runs {arguments}"


def variables_are_settings(objects: Objects) -> Iterator[str]:
    """Every variable and every key of the ConfigMap is a setting with a value that it takes, and none is a secret."""
    given = [(OURS, name, value) for name, value in settings(objects).items()]
    for pod in workloads(objects):
        if pod.ours:
            given += [
                (pod.name, one["name"], one.get("value"))
                for container in pod.containers
                for one in container.get("env", [])
            ]
    for where, name, value in given:
        if not known.is_setting(name, value):
            yield f"{where}: {name}={value} is no setting"
        if name in known.secret_settings():
            yield f"{where}: {name} is a secret"


def what_is_named_is_there(objects: Objects) -> Iterator[str]:
    """ConfigMaps and Secrets that pods name are rendered, or made by secrets.sh; their files are settings."""
    configs = {one["metadata"]["name"] for one in of_kind(objects, "ConfigMap")}
    rendered = {one["metadata"]["name"]: set(one["data"]) for one in of_kind(objects, "Secret")}
    secrets = rendered or {name: set(one["stringData"]) for name, one in made_by_the_script().items()}
    for pod in workloads(objects):
        if not pod.ours:
            continue
        named = {one["configMapRef"]["name"] for one in pod.containers[0].get("envFrom", []) if "configMapRef" in one}
        if not named <= configs:
            yield f"{pod.name} takes its settings from {named}"
        for secret in pod.secrets:
            items = secret.get("items", [])
            if not items or not {item["key"] for item in items} <= secrets.get(secret["name"], set()):
                yield f"{pod.name} takes {items} from the Secret {secret['name']}"
            if not all(item["path"].lower() in Settings.model_fields and item["path"].isupper() for item in items):
                yield f"{pod.name} has files that are no settings: {items}"


def only_the_interface_is_public(objects: Objects) -> Iterator[str]:
    """Outside leads exactly to the calls of the REST interface, at the public port of the ingress."""
    for one in of_kind(objects, "Service"):
        if one["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"Service {one['metadata']['name']} is open to the outside"
    for one in of_kind(objects, "Ingress"):
        if "defaultBackend" in one["spec"]:
            yield f"Ingress {one['metadata']['name']} leads everything inside"
        paths = [path for rule in one["spec"]["rules"] for path in rule["http"]["paths"]]
        if any(path["backend"]["service"] != {"name": OURS, "port": {"name": "http"}} for path in paths):
            yield f"Ingress {one['metadata']['name']} leads elsewhere"
        shown = {path for path in known.rest_paths() if any(_leads(rule, path) for rule in paths)}
        wanted = {path for path in known.rest_paths() if not path.startswith(_UNSHOWN)}
        if shown != wanted or any(_leads(rule, path) for rule in paths for path in (*_UNSHOWN, "/")):
            yield f"Ingress {one['metadata']['name']} differs in {sorted(shown ^ wanted)}"


RULES: tuple[Rule, ...] = (
    selectors_match_pods,
    ports_meet,
    ports_are_those_of_the_settings,
    probed_paths_exist,
    arguments_are_commands,
    variables_are_settings,
    what_is_named_is_there,
    only_the_interface_is_public,
)


def _leads(rule: dict[str, str], path: str) -> bool:
    """Say whether an Ingress path takes a request, as Kubernetes compares: whole, or element by element."""
    if rule["pathType"] == "Exact":
        return path == rule["path"]
    wanted = rule["path"].strip("/").split("/")
    return wanted == [""] or path.strip("/").split("/")[: len(wanted)] == wanted
