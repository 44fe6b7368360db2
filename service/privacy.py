"""The data about people that logs and traces may contain: ids unchanged, and possible numbers as a keyed hash.

Texts, QR codes and keys are never logged. A number that is useful in a log is replaced by `hashed`: the same number
gives the same hash in all processes that share LOG_HASH_KEY, and without the key numbers cannot be guessed and
compared.
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
    """Return the hash of a phone number or JID, the same for all its notations."""
    return hmac.new(_key[0], customer_address(number).encode(), hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def shown(identifier: str) -> str:
    """Return an id in a loggable form: others derive ids from phone numbers."""
    if _OURS.fullmatch(identifier) or not _MAY_BE_A_NUMBER.search(identifier):
        return identifier[:_MOST_CHARACTERS]
    return f"hash:{hashed(identifier)}"


def shown_code(code: str) -> str:
    """Return an error's code in a loggable form: a gateway may put any text there."""
    return code if _CODE.fullmatch(code) else "unknown"
