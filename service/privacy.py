"""What may be told of people in logs and traces: ids as they are, and whatever may be a number as a keyed hash.

Texts, QR codes and keys are never told at all. Where a log would help with a number, `hashed` is what it shows: the
same number gives the same hash in all processes that share LOG_HASH_KEY, and without the key nobody can try numbers.
"""

import hashlib
import hmac
import re
import secrets

from service.domain.identities import customer_address

_HASH_DIGITS = 12
_MOST_CHARACTERS = 200
_OURS = re.compile(r"(session_)?[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}(_\d{1,16})?", re.IGNORECASE)
"""A UUID, or the id of a session that this service opened."""
_MAY_BE_A_NUMBER = re.compile(r"\d(?:\D?\d){6}")
_CODE = re.compile(r"[a-z][a-z_]{0,39}")

_key = [secrets.token_bytes(32)]


def configure(key: str | None) -> None:
    """Hash with this key from now on; without one, with a random one of this process."""
    _key[0] = key.encode() if key else secrets.token_bytes(32)


def hashed(number: str) -> str:
    """Return what stands for a phone number or JID, however it is written."""
    return hmac.new(_key[0], customer_address(number).encode(), hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def shown(identifier: str) -> str:
    """Return an id as it may be shown: others make ids of phone numbers."""
    if _OURS.fullmatch(identifier) or not _MAY_BE_A_NUMBER.search(identifier):
        return identifier[:_MOST_CHARACTERS]
    return f"hash:{hashed(identifier)}"


def shown_code(code: str) -> str:
    """Return an error's code as it may be shown: a gateway may put anything there."""
    return code if _CODE.fullmatch(code) else "unknown"
