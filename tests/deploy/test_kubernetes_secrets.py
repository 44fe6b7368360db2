"""secrets.sh makes what the manifests name, and every part of it fits the others."""

import pytest

from service.operating import rights
from service.settings import Settings
from tests.deploy.manifests import Objects, dict_of, objects, of_kind, our_workloads
from tests.deploy.secrets_script import NAMESPACE, made, made_by_the_script, run_script
from tests.deploy.test_kubernetes_rendered import complaint

ENVIRONMENT = ("overlays/production", "overlays/production/migrate")


def everything() -> Objects:
    """Return the objects of production, its jobs included."""
    return [one for root in ENVIRONMENT for one in objects(root)]


def data(name: str) -> dict[str, str]:
    """Return what is in a Secret."""
    return dict_of(made_by_the_script()[name]["stringData"])


def test_the_secrets_are_valid() -> None:
    """Kubernetes takes them, in the namespace that was named."""
    for secret in made_by_the_script().values():
        assert complaint(secret, "1.33") == ""
        assert secret["metadata"]["namespace"] == NAMESPACE


def test_nothing_is_made_that_nobody_reads() -> None:
    """Each Secret is a process's, an operator's, or the gateway's."""
    found = everything()
    named = {secret["name"] for pod in our_workloads(found) for secret in pod.secrets}
    named |= {one["spec"]["importCredentialsSecret"]["name"] for one in imported_users(found)}
    named |= {
        one["name"] for trigger in of_kind(found, "TriggerAuthentication") for one in trigger["spec"]["secretTargetRef"]
    }
    (database,) = of_kind(found, "Cluster")
    named.add(database["spec"]["bootstrap"]["initdb"]["secret"]["name"])
    named |= {role["passwordSecret"]["name"] for role in database["spec"]["managed"]["roles"]}
    assert set(made_by_the_script()) == named | {"whatsapp-qr-service"}


def imported_users(found: Objects) -> Objects:
    """Return the broker's users whose passwords are given."""
    return [one for one in of_kind(found, "User") if "importCredentialsSecret" in one["spec"]]


def test_every_broker_user_has_its_password() -> None:
    """Each process logs in with the name and password that the operator is given for its user."""
    users = imported_users(everything())
    assert {one["metadata"]["name"] for one in users} == {one.user for one in rights.users()}
    for user in users:
        given = data(user["spec"]["importCredentialsSecret"]["name"])
        assert given["username"] == user["metadata"]["name"]
        url = given.get("AMQP_URL") or given["host"]
        assert f"://{given['username']}:{given['password']}@whatsapp-qr-rabbitmq" in url


def test_every_database_role_has_its_password() -> None:
    """The migration logs in as the owner, the processes as the role that has rows only."""
    (database,) = of_kind(everything(), "Cluster")
    initial = database["spec"]["bootstrap"]["initdb"]
    (managed,) = database["spec"]["managed"]["roles"]
    owner, rows = data(initial["secret"]["name"]), data(managed["passwordSecret"]["name"])
    assert (owner["username"], rows["username"]) == (initial["owner"], managed["name"])
    for pod in our_workloads(everything()):
        if pod.role == "topology":
            continue
        role = owner if pod.role == "migrate" else rows
        url = f"postgresql://{role['username']}:{role['password']}@whatsapp-qr-postgres-rw:5432/{initial['database']}"
        assert data(pod.name)["DATABASE_URL"] == url


@pytest.mark.parametrize("role", ["ingress", "session-consumer", "conversation-consumer", "outbound-consumer"])
def test_the_settings_take_them(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process finds in its files are settings that it accepts."""
    for name, value in data(f"whatsapp-qr-{role}").items():
        if name.isupper():
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.log_hash_key
    assert bool(settings.api_keys and settings.webhook_secret) == (role == "ingress")


def test_passwords_are_random_and_not_shared() -> None:
    """No two users have one password, and a second run makes others."""
    passwords = [
        secret["stringData"]["password"]
        for secret in made_by_the_script().values()
        if "password" in secret["stringData"]
    ]
    assert len(set(passwords)) == len(passwords) == 11
    assert min(map(len, passwords)) >= 32
    assert not [secret for secret in made().values() if secret in list(made_by_the_script().values())]


def test_clients_reach_the_broker_from_their_own_namespace() -> None:
    """Their URL names the service's; those of the processes need not."""
    elsewhere = {name for name, one in made_by_the_script().items() if f".{NAMESPACE}.svc:5672/" in str(one)}
    assert elsewhere == {"ai-worker", "event-subscriber"}


def test_a_second_run_makes_nothing() -> None:
    """What exists is not made again."""
    again = run_script(NAMESPACE, existing=made_by_the_script())
    assert (again.returncode, again.stdout) == (0, "")


SHARED = ("ingress", "service", "postgres-owner", "postgres-service")
OF_ONE = tuple(
    f"whatsapp-qr-{name}"
    for name in (
        *("session-consumer", "conversation-consumer", "outbound-consumer"),
        *("migrate", "topology", "operator", "keda"),
    )
)


@pytest.mark.parametrize("gone", [*OF_ONE, "ai-worker", "event-subscriber"])
def test_one_that_is_missing_fits_the_others(gone: str) -> None:
    """Shared values are those that exist; its own password is new."""
    existing = {name: one for name, one in made_by_the_script().items() if name != gone}
    (new,) = made(existing).values()
    before, after = data(gone), new["stringData"]
    assert before.keys() == after.keys()
    for key in ("LOG_HASH_KEY", "DATABASE_URL"):
        assert before.get(key) == after.get(key)
    assert ("password" not in before) or before["password"] != after["password"]


@pytest.mark.parametrize("gone", SHARED)
def test_what_others_share_is_never_made_anew(gone: str) -> None:
    """Where its home is gone nothing is made: it would fit nothing."""
    existing = {name: one for name, one in made_by_the_script().items() if name != f"whatsapp-qr-{gone}"}
    run = run_script(NAMESPACE, existing=existing)
    assert (run.returncode, run.stdout) == (1, "")
    assert f"but not whatsapp-qr-{gone}" in run.stderr


def test_nothing_is_made_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that does not answer may have them all."""
    monkeypatch.setattr("tests.deploy.secrets_script._KUBECTL", "#!/bin/sh\nexit 1\n")
    run = run_script(NAMESPACE)
    assert (run.returncode, run.stdout) == (1, "")


def test_the_namespace_has_to_be_named() -> None:
    """Nothing is made for a namespace that somebody guessed."""
    run = run_script()
    assert (run.returncode, run.stdout) == (2, "")
