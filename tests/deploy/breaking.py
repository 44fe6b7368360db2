"""Ways to break what is rendered: each takes the objects, changes one thing, and so breaks exactly one rule."""

from collections.abc import Callable
from typing import Any

from tests.deploy import capacity_rules, pod_security, reference_rules, workload_rules
from tests.deploy.manifests import Objects, Rule, container, named, of_kind, settings, workload

INGRESS = "whatsapp-qr-ingress"
OUTBOUND = "whatsapp-qr-outbound-consumer"
Break = Callable[[Objects], object]


def _pod(**changes: Any) -> Break:
    return lambda objects: workload(objects, INGRESS).spec.update(changes)


def _pod_context(**changes: Any) -> Break:
    return lambda objects: workload(objects, INGRESS).spec["securityContext"].update(changes)


def _context(**changes: Any) -> Break:
    return lambda objects: container(objects, INGRESS)["securityContext"].update(changes)


def _container(**changes: Any) -> Break:
    return lambda objects: container(objects, INGRESS).update(changes)


def _probe(kind: str, **changes: Any) -> Break:
    return lambda objects: container(objects, OUTBOUND)[kind]["httpGet"].update(changes)


def _setting(**changes: str) -> Break:
    return lambda objects: settings(objects).update(changes)


def _deployment(**changes: Any) -> Break:
    return lambda objects: workload(objects, OUTBOUND).object["spec"].update(changes)


def _spec(kind: str, name: str, **changes: Any) -> Break:
    return lambda objects: named(objects, kind, name)["spec"].update(changes)


def _volume(volume: dict[str, Any]) -> Break:
    return lambda objects: workload(objects, INGRESS).spec["volumes"].append(volume)


def _trigger(number: int, **changes: str) -> Break:
    def broken(objects: Objects) -> None:
        named(objects, "ScaledObject", OUTBOUND)["spec"]["triggers"][number]["metadata"].update(changes)

    return broken


def _secret(**changes: Any) -> Break:
    return lambda objects: workload(objects, OUTBOUND).secrets[0].update(changes)


def _without(kind: str, name: str) -> Break:
    return lambda objects: objects.remove(named(objects, kind, name))


def _ingress_path(path: str, kind: str) -> Break:
    def broken(objects: Objects) -> None:
        backend = {"service": {"name": "whatsapp-qr", "port": {"name": "http"}}}
        paths = named(objects, "Ingress", "whatsapp-qr")["spec"]["rules"][0]["http"]["paths"]
        paths.append({"path": path, "pathType": kind, "backend": backend})

    return broken


def _outside_the_namespace(objects: Objects) -> None:
    named(objects, "Service", "whatsapp-qr")["metadata"]["namespace"] = "default"


def _an_open_namespace(objects: Objects) -> None:
    of_kind(objects, "Namespace")[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


def _internal_port_outside(objects: Objects) -> None:
    path = named(objects, "Ingress", "whatsapp-qr")["spec"]["rules"][0]["http"]["paths"][0]
    path["backend"]["service"] = {"name": "whatsapp-qr-internal", "port": {"name": "internal"}}


def _a_port_nobody_has(objects: Objects) -> None:
    named(objects, "Service", "whatsapp-qr")["spec"]["ports"][0]["targetPort"] = "web"


def _no_pre_stop(objects: Objects) -> None:
    del container(objects, INGRESS)["lifecycle"]


def _fewer_connections(objects: Objects) -> None:
    named(objects, "Cluster", "whatsapp-qr-postgres")["spec"]["postgresql"]["parameters"]["max_connections"] = "100"


def _spread_over_nodes_only(objects: Objects) -> None:
    del workload(objects, OUTBOUND).spec["topologySpreadConstraints"][0]


def _spread_counts_old_pods(objects: Objects) -> None:
    del workload(objects, OUTBOUND).spec["topologySpreadConstraints"][0]["matchLabelKeys"]


def _less_memory(objects: Objects) -> None:
    container(objects, OUTBOUND)["resources"]["limits"]["memory"] = "767Mi"


def _broker(without: str, instead: str = "") -> Break:
    def broken(objects: Objects) -> None:
        told = named(objects, "RabbitmqCluster", "whatsapp-qr-rabbitmq")["spec"]["rabbitmq"]
        assert without in told["additionalConfig"]
        told["additionalConfig"] = told["additionalConfig"].replace(without, instead)

    return broken


def _faster_down(objects: Objects) -> None:
    behavior = named(objects, "ScaledObject", OUTBOUND)["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    behavior["scaleDown"]["policies"][0]["value"] = 4


def _scrapes_elsewhere(objects: Objects) -> None:
    named(objects, "PodMonitor", "whatsapp-qr")["spec"]["podMetricsEndpoints"][0]["path"] = "/prometheus"


def _secret_as_volume(objects: Objects) -> None:
    workload(objects, INGRESS).spec["volumes"].append({"name": "more", "secret": {"secretName": "whatsapp-qr-more"}})


def _other_token(objects: Objects) -> None:
    named(objects, "ServiceAccount", INGRESS)["automountServiceAccountToken"] = True


def _temporary_folder_gone(objects: Objects) -> None:
    mounts = container(objects, INGRESS)["volumeMounts"]
    mounts[:] = [mount for mount in mounts if mount["name"] != "tmp"]


def _secrets_elsewhere(objects: Objects) -> None:
    for mount in container(objects, INGRESS)["volumeMounts"]:
        mount["mountPath"] = mount["mountPath"].replace("/run/secrets", "/secrets")


def _wide_selector(objects: Objects) -> None:
    workload(objects, OUTBOUND).object["spec"]["selector"]["matchLabels"]["app.kubernetes.io/part-of"] = "whatsapp-qr"


_SECRET_VARIABLE = {
    "name": "LOG_LEVEL",
    "valueFrom": {"secretKeyRef": {"name": INGRESS, "key": "LOG_LEVEL"}},
    "value": "info",
}

PRODUCTION: tuple[tuple[Rule, Break], ...] = (
    (pod_security.runs_without_root, _pod_context(runAsNonRoot=False)),
    (pod_security.runs_without_root, _context(runAsUser=0)),
    (pod_security.runs_as_the_images_user, _pod_context(runAsUser=1000)),
    (pod_security.runs_as_the_images_user, _pod_context(fsGroup=2000)),
    (pod_security.has_the_default_seccomp_profile, _pod_context(seccompProfile={"type": "Unconfined"})),
    (pod_security.has_the_default_seccomp_profile, _context(seccompProfile={"type": "Unconfined"})),
    (pod_security.gains_no_privileges, _context(allowPrivilegeEscalation=True)),
    (pod_security.gains_no_privileges, _context(privileged=True)),
    (pod_security.has_no_capabilities, _context(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})),
    (pod_security.has_no_capabilities, _context(capabilities={})),
    (pod_security.shares_nothing_with_its_node, _pod(hostNetwork=True)),
    (pod_security.shares_nothing_with_its_node, _volume({"name": "node", "hostPath": {"path": "/"}})),
    (pod_security.cannot_write_its_image, _context(readOnlyRootFilesystem=False)),
    (pod_security.has_bounded_scratch_space, _volume({"name": "more", "emptyDir": {}})),
    (pod_security.has_bounded_scratch_space, _temporary_folder_gone),
    (pod_security.has_an_account_of_its_own, _pod(automountServiceAccountToken=True)),
    (pod_security.has_an_account_of_its_own, _pod(serviceAccountName=OUTBOUND)),
    (pod_security.has_an_account_of_its_own, _other_token),
    (workload_rules.is_told_nothing_of_other_services, _pod(enableServiceLinks=True)),
    (workload_rules.asks_for_what_it_needs, _container(resources={"requests": {"cpu": "1", "memory": "1Gi"}})),
    (workload_rules.asks_for_what_it_needs, _container(resources={"limits": {"cpu": "1", "memory": "1Gi"}})),
    (workload_rules.starts_the_entrypoint, _container(command=["sh", "-c", "whatsapp-qr ingress"])),
    (workload_rules.is_probed, _probe("livenessProbe", path="/readyz")),
    (workload_rules.is_probed, lambda objects: container(objects, OUTBOUND).pop("startupProbe")),
    (workload_rules.is_replaced_one_by_one, _deployment(strategy={"type": "Recreate"})),
    (workload_rules.is_spread, _spread_over_nodes_only),
    (workload_rules.is_spread, _spread_counts_old_pods),
    (workload_rules.survives_drains, _without("PodDisruptionBudget", OUTBOUND)),
    (workload_rules.survives_drains, _spec("PodDisruptionBudget", OUTBOUND, maxUnavailable=0)),
    (
        workload_rules.survives_drains,
        _spec("PodDisruptionBudget", OUTBOUND, unhealthyPodEvictionPolicy="IfHealthyBudget"),
    ),
    (workload_rules.is_pinned, _container(image="registry.example.com/whatsapp-qr:latest")),
    (workload_rules.is_pinned, _container(image="registry.example.com/whatsapp-qr:1.2.3")),
    (pod_security.keeps_secrets_in_files, _container(env=[_SECRET_VARIABLE])),
    (pod_security.keeps_secrets_in_files, _secret_as_volume),
    (pod_security.has_a_secret_of_its_own, _secret(name=INGRESS, items=[{"key": "AMQP_URL", "path": "AMQP_URL"}])),
    (pod_security.has_a_secret_of_its_own, _secrets_elsewhere),
    (workload_rules.has_selectors_that_never_change, _wide_selector),
    (pod_security.is_admitted_restricted, _an_open_namespace),
    (pod_security.is_admitted_restricted, _outside_the_namespace),
    (
        reference_rules.selectors_match_pods,
        _spec("Service", "whatsapp-qr", selector={"app.kubernetes.io/name": "typo"}),
    ),
    (
        reference_rules.selectors_match_pods,
        _spec(
            "HorizontalPodAutoscaler", INGRESS, scaleTargetRef={"kind": "Deployment", "name": "ingress"}, maxReplicas=1
        ),
    ),
    (reference_rules.ports_meet, _a_port_nobody_has),
    (reference_rules.ports_meet, _probe("livenessProbe", port="health")),
    (reference_rules.ports_are_those_of_the_settings, _setting(HEALTH_PORT="8081")),
    (reference_rules.ports_are_those_of_the_settings, lambda objects: settings(objects).pop("INTERNAL_PORT")),
    (reference_rules.probed_paths_exist, _scrapes_elsewhere),
    (reference_rules.arguments_are_commands, _container(args=["web"])),
    (reference_rules.arguments_are_commands, _container(args=["session-consumer"])),
    (reference_rules.variables_are_settings, _setting(SEND_RATES="2")),
    (reference_rules.variables_are_settings, _setting(SEND_RATE="fast")),
    (reference_rules.variables_are_settings, _setting(AMQP_URL="amqp://host/")),
    (reference_rules.what_is_named_is_there, _container(envFrom=[{"configMapRef": {"name": "whatsapp-qr"}}])),
    (reference_rules.what_is_named_is_there, _secret(items=[{"key": "API_KEYS", "path": "API_KEYS"}])),
    (reference_rules.what_is_named_is_there, _secret(items=[{"key": "AMQP_URL", "path": "AMQP"}])),
    (capacity_rules.consumers_scale_to_the_partitions, _spec("ScaledObject", OUTBOUND, maxReplicaCount=5)),
    (capacity_rules.consumers_scale_to_the_partitions, _faster_down),
    (capacity_rules.consumers_scale_to_the_partitions, _deployment(replicas=2)),
    (capacity_rules.scalers_look_at_what_exists, _trigger(0, query="max(whatsapp_qr_oldest_pendng_seconds)")),
    (capacity_rules.scalers_look_at_what_exists, _trigger(1, queueName="^whatsapp-qr-send$")),
    (capacity_rules.scalers_look_at_what_exists, _trigger(1, queueLenght="10")),
    (capacity_rules.scalers_look_at_what_exists, _trigger(1, protocol="amqp")),
    (
        capacity_rules.there_is_time_to_finish,
        lambda objects: workload(objects, OUTBOUND).spec.pop("terminationGracePeriodSeconds"),
    ),
    (capacity_rules.there_is_time_to_finish, _setting(GATEWAY_TIMEOUT="30")),
    (capacity_rules.there_is_time_to_finish, _no_pre_stop),
    (capacity_rules.connections_suffice, _setting(DATABASE_POOL="20")),
    (capacity_rules.connections_suffice, _fewer_connections),
    (capacity_rules.connections_suffice, _spec("HorizontalPodAutoscaler", INGRESS, maxReplicas=30)),
    (capacity_rules.memory_suffices, _less_memory),
    (capacity_rules.memory_suffices, _setting(PREFETCH="65")),
    (capacity_rules.brokers_refuse_what_is_too_large, _broker("max_message_size = 1048576\n")),
    (capacity_rules.brokers_refuse_what_is_too_large, _broker("max_message_size", "max_mesage_size")),
    (capacity_rules.brokers_refuse_what_is_too_large, _broker("1048576", "16777216")),
    (reference_rules.only_the_interface_is_public, _ingress_path("/whatsapp-qr", "Prefix")),
    (reference_rules.only_the_interface_is_public, _ingress_path("/whatsapp-qr/webhook", "Exact")),
    (reference_rules.only_the_interface_is_public, _ingress_path("/metrics", "Exact")),
    (reference_rules.only_the_interface_is_public, _internal_port_outside),
    (reference_rules.only_the_interface_is_public, _spec("Service", "whatsapp-qr-internal", type="LoadBalancer")),
    (reference_rules.only_the_interface_is_public, _spec("Ingress", "whatsapp-qr", defaultBackend={"service": {}})),
)

MIGRATE = "whatsapp-qr-migrate"
JOBS: tuple[tuple[Rule, Break], ...] = (
    (
        workload_rules.gives_up_jobs,
        lambda objects: workload(objects, MIGRATE).object["spec"].pop("activeDeadlineSeconds"),
    ),
    (workload_rules.gives_up_jobs, lambda objects: workload(objects, MIGRATE).spec.update(restartPolicy="OnFailure")),
    (workload_rules.is_pinned, lambda objects: container(objects, MIGRATE).update(image="whatsapp-qr")),
    (
        reference_rules.arguments_are_commands,
        lambda objects: container(objects, MIGRATE).update(args=["migrate", "now"]),
    ),
    (reference_rules.arguments_are_commands, lambda objects: container(objects, MIGRATE).update(args=["topology"])),
    (pod_security.has_an_account_of_its_own, lambda objects: workload(objects, MIGRATE).spec.pop("serviceAccountName")),
)
