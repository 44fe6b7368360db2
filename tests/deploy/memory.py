"""What a consumer's memory has to hold, and what a broker's configuration lets in. docs/operations.md says why."""

import re

from service.operating.comparing import MAX_MESSAGE_SIZE
from service.settings import Settings

MIB = 1024 * 1024
_OWN = 128  # an idle process has about 100
_COPIES = 2  # the bytes, and what is made of them; measured: up to 1.4 MiB for each body of 1 MiB
_UNITS = {"Mi": 1, "m": 1, "Gi": 1024, "g": 1024}


def needed(prefetch: int | None, partitions: int) -> int:
    """Return how many MiB a consumer needs that has all that its prefetch allows, each as large as the broker lets in.

    Args:
        prefetch: PREFETCH, where something else is set than the default.
        partitions: PARTITIONS; one consumer reads all of them, and the entry beside them, while it is alone.
    """
    messages = (prefetch or int(Settings.model_fields["prefetch"].default)) * (partitions + 1)
    return _OWN + _COPIES * messages * MAX_MESSAGE_SIZE // MIB


def mebibytes(limit: str) -> int:
    """Return a limit of Kubernetes (`640Mi`) or compose (`640m`) in MiB; 0 for none."""
    found = re.fullmatch(r"(\d+)(Mi|Gi|m|g)", limit)
    return int(found[1]) * _UNITS[found[2]] if found else 0


def largest_message(configuration: str) -> int | None:
    """Return `max_message_size` of a rabbitmq.conf: the last one counts."""
    sizes = re.findall(r"^\s*max_message_size\s*=\s*(\d+)\s*$", configuration, re.MULTILINE)
    return int(sizes[-1]) if sizes else None
