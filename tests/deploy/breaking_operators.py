"""Ways to break what the operators need, and what waits for them: each breaks exactly one rule."""

from tests.deploy import operator_rules, reference_rules
from tests.deploy.breaking import INGRESS, OUTBOUND, Break
from tests.deploy.manifests import Objects, Rule, container, named

TOPOLOGY = "whatsapp-qr-topology"
_UNLABELLED = {"name": "whatsapp-qr-migrate"}


def _user_of_another_secret(objects: Objects) -> None:
    named(objects, "User", INGRESS)["spec"]["importCredentialsSecret"] = _UNLABELLED


def _user_with_a_random_name(objects: Objects) -> None:
    del named(objects, "User", "ai-worker")["spec"]["importCredentialsSecret"]


def _owner_of_another_secret(objects: Objects) -> None:
    named(objects, "Cluster", "whatsapp-qr-postgres")["spec"]["bootstrap"]["initdb"]["secret"] = _UNLABELLED


def _role_of_another_secret(objects: Objects) -> None:
    named(objects, "Cluster", "whatsapp-qr-postgres")["spec"]["managed"]["roles"][0]["passwordSecret"] = _UNLABELLED


def _part_of_nothing(objects: Objects) -> None:
    del named(objects, "ScaledObject", OUTBOUND)["metadata"]["labels"]


def _part_of_something_else(objects: Objects) -> None:
    named(objects, "Ingress", "whatsapp-qr")["metadata"]["labels"][operator_rules.PART_OF] = "shop"


def _an_option_that_is_none(objects: Objects) -> None:
    container(objects, TOPOLOGY)["args"][-1] = "--timeout=120"


def _waits_until_it_is_ended(objects: Objects) -> None:
    container(objects, TOPOLOGY)["args"][-1] = "--wait=900"


PRODUCTION: tuple[tuple[Rule, Break], ...] = (
    (operator_rules.operators_see_their_secrets, _user_of_another_secret),
    (operator_rules.operators_see_their_secrets, _user_with_a_random_name),
    (operator_rules.operators_see_their_secrets, _owner_of_another_secret),
    (operator_rules.operators_see_their_secrets, _role_of_another_secret),
    (operator_rules.everything_is_part_of_it, _part_of_nothing),
    (operator_rules.everything_is_part_of_it, _part_of_something_else),
)

JOBS: tuple[tuple[Rule, Break], ...] = (
    (reference_rules.arguments_are_commands, _an_option_that_is_none),
    (operator_rules.waits_end_in_time, _waits_until_it_is_ended),
)
