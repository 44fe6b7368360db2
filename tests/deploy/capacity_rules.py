"""Numbers of pods, seconds and connections fit together, and the autoscalers look at what exists."""

import re
from collections.abc import Iterator

from service import cli
from service.messaging import subscriptions, topology
from service.operating.comparing import MAX_MESSAGE_SIZE
from service.persistence import database
from service.settings import Settings
from tests.deploy import known, memory
from tests.deploy.manifests import OURS, Objects, Rule, Workload, named, of_kind, processes, settings, workloads

_CONSUMED = {
    "session-consumer": topology.SESSIONS,
    "conversation-consumer": topology.CONVERSATIONS,
    "outbound-consumer": topology.SENDS,
}
# What the scalers of KEDA read; its schema takes any key, and a misspelt one means the default.
_SCALER_KEYS = {
    "rabbitmq": {
        *("activationValue", "excludeUnacknowledged", "host", "hostFromEnv", "mode", "operation", "pageSize"),
        *("passwordFromEnv", "protocol", "queueLength", "queueName", "timeout", "unsafeSsl", "useRegex"),
        *("usernameFromEnv", "value", "vhostName"),
    },
    "prometheus": {
        *("activationThreshold", "authModes", "customHeaders", "ignoreNullValues", "namespace", "query"),
        *("queryParameters", "serverAddress", "threshold", "timeout", "unsafeSsl"),
    },
}
# A number whatever the gauges are, of the installation in this namespace.
_QUERY = re.compile(r'max\([^"]*\{namespace="(?P<namespace>[^"]*)".* >= 0\) or vector\(0\)')
_RESERVED = 3 + 10  # superuser_reserved_connections; replication, the operator's own and somebody who looks


def consumers_scale_to_the_partitions(objects: Objects) -> Iterator[str]:
    """Each consumer between 2 and PARTITIONS pods, down by one a minute, and no number that an apply sets again.

    All of them where a scaler cannot be asked; and the alerts expect as many partitions.
    """
    partitions = int(settings(objects)["PARTITIONS"])
    for rules in of_kind(objects, "PrometheusRule"):
        for rule in (rule for group in rules["spec"]["groups"] for rule in group["rules"]):
            if rule.get("record") == "whatsapp_qr:partitions" and rule["expr"] != f"vector({partitions})":
                yield f"the alerts expect {rule['expr']} partitions"
    scaled = of_kind(objects, "ScaledObject")
    for one in scaled:
        spec, name = one["spec"], one["metadata"]["name"]
        if (spec["minReplicaCount"], spec["maxReplicaCount"]) != (2, partitions):
            yield f"{name} scales to {spec['maxReplicaCount']} pods"
        if spec.get("fallback", {}).get("replicas") != partitions:
            yield f"{name} falls back to {spec.get('fallback')}"
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        if down.get("policies") != [{"type": "Pods", "value": 1, "periodSeconds": 60}]:
            yield f"{name} scales down by {down}"
    for one in scaled + of_kind(objects, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]["name"]
        if any("replicas" in pod.object["spec"] for pod in workloads(objects) if pod.name == target):
            yield f"{target} has a number of pods besides its autoscaler's"


def scalers_look_at_what_exists(objects: Objects) -> Iterator[str]:
    """By keys that KEDA reads: first our own metrics, then exactly the queues that the process reads."""
    partitions = int(settings(objects)["PARTITIONS"])
    for one in of_kind(objects, "ScaledObject"):
        name, triggers = one["metadata"]["name"], one["spec"]["triggers"]
        if [trigger["type"] for trigger in triggers] != ["prometheus", "rabbitmq"]:
            yield f"{name} has other triggers"
            continue
        for trigger in triggers:
            unknown = set(trigger["metadata"]) - _SCALER_KEYS[trigger["type"]]
            if unknown:
                yield f"{name}: KEDA ignores {unknown}"
        query = triggers[0]["metadata"]["query"]
        unknown = known.metrics_in(query) - known.known_metrics()
        if unknown:
            yield f"{name} asks for {unknown}"
        asked = _QUERY.fullmatch(query)
        if asked is None or asked["namespace"] != one["metadata"].get("namespace", asked["namespace"]):
            yield f"{name} may get no number, or another installation's: {query}"
        queue = _CONSUMED[one["spec"]["scaleTargetRef"]["name"].removeprefix(f"{OURS}-")]
        wanted = {queue.queue_name(number) for number in range(partitions)} | ({queue.entry} if queue.entry else set())
        expression = triggers[1]["metadata"].get("queueName", "")
        if {known.name for known in topology.queues(partitions) if re.search(expression, known.name)} != wanted:
            yield f"{name} looks at {expression}"
        if triggers[1]["metadata"].get("protocol") != "http":
            yield f"{name} does not count what is under way"


def there_is_time_to_finish(objects: Objects) -> Iterator[str]:
    """A pod is killed only after what its process allows itself: requests, handlers, calls, closing."""
    closing = database._CLOSE_SECONDS
    consumer = cli.GRACE + subscriptions.GRACE_SECONDS + closing
    field = settings(objects).get("GATEWAY_TIMEOUT", Settings.model_fields["gateway_timeout"].default)
    needed = {
        "ingress": cli.INGRESS_GRACE + closing,
        "session-consumer": consumer,
        "conversation-consumer": consumer,
        "outbound-consumer": consumer + float(field),
    }
    for pod in processes(objects):
        hook = pod.containers[0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pod.spec.get("terminationGracePeriodSeconds", 30) <= needed[pod.role] + hook:
            yield f"{pod.name} may be killed in the middle of work"
        if pod.role == "ingress" and hook < 5:
            yield f"{pod.name} stops while calls still come"


def connections_suffice(objects: Objects) -> Iterator[str]:
    """All pods at their most, one more of each while they are replaced, and the migration fit into PostgreSQL."""
    pool = int(settings(objects)["DATABASE_POOL"])
    pods = sum(most_pods(objects, pod) + 1 for pod in processes(objects))
    allowed = _max_connections(objects)
    if allowed is not None and pods * pool + 1 + _RESERVED > allowed:
        yield f"{pods} pods take {pods * pool} of {allowed} connections"


def memory_suffices(objects: Objects) -> Iterator[str]:
    """A consumer is not killed for what it has prefetched, however large the messages are that the broker lets in."""
    given = settings(objects)
    needed = memory.needed(int(given.get("PREFETCH", 0)), int(given["PARTITIONS"]))
    for pod in processes(objects):
        limit = pod.containers[0].get("resources", {}).get("limits", {}).get("memory", "")
        if pod.role in _CONSUMED and memory.mebibytes(limit) < needed:
            yield f"{pod.name} has {limit}, and may need {needed} MiB"


def brokers_refuse_what_is_too_large(objects: Objects) -> Iterator[str]:
    """Each RabbitMQ is told the size that the consumers' memory is reckoned with."""
    for name, configuration in _broker_configurations(objects):
        if memory.largest_message(configuration) != MAX_MESSAGE_SIZE:
            yield f"{name} lets in more, or less, than {MAX_MESSAGE_SIZE} bytes"


RULES: tuple[Rule, ...] = (
    consumers_scale_to_the_partitions,
    scalers_look_at_what_exists,
    there_is_time_to_finish,
    connections_suffice,
    memory_suffices,
    brokers_refuse_what_is_too_large,
)


def most_pods(objects: Objects, pod: Workload) -> int:
    """Return how many pods a workload has at most."""
    for one in of_kind(objects, "ScaledObject", "HorizontalPodAutoscaler"):
        if one["spec"]["scaleTargetRef"]["name"] == pod.name:
            return int(one["spec"].get("maxReplicaCount") or one["spec"]["maxReplicas"])
    return int(pod.object["spec"].get("replicas", 1))


def _broker_configurations(objects: Objects) -> Iterator[tuple[str, str]]:
    for one in of_kind(objects, "RabbitmqCluster"):
        yield one["metadata"]["name"], one["spec"]["rabbitmq"].get("additionalConfig", "")
    for pod in workloads(objects):
        for container in pod.containers:
            if "/rabbitmq:" in container["image"]:
                configs = {one["name"]: one["configMap"]["name"] for one in pod.spec["volumes"] if "configMap" in one}
                told = [
                    named(objects, "ConfigMap", configs[mount["name"]])["data"][mount["subPath"]]
                    for mount in container["volumeMounts"]
                    if mount["name"] in configs and mount["mountPath"].startswith("/etc/rabbitmq/conf.d/")
                ]
                yield pod.name, "".join(told)


def _max_connections(objects: Objects) -> int | None:
    for one in of_kind(objects, "Cluster"):
        return int(one["spec"]["postgresql"]["parameters"]["max_connections"])
    for pod in workloads(objects):
        for argument in pod.containers[0].get("args", []):
            if argument.startswith("max_connections="):
                return int(argument.partition("=")[2])
    return None
