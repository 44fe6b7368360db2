"""WhatsApp addresses: the accepted notations, and the one form in which the service stores them."""

import re
from typing import Annotated

from pydantic import AfterValidator

from whatsapp_qr_contracts.message import Text

ADDRESS_PATTERN = (
    r"^\s*(\+?([ -]*[0-9]){7,15}[ -]*|[0-9A-Za-z._-]{1,64}(:[0-9]{1,5})?@(s\.whatsapp\.net|c\.us|lid|g\.us))\s*$"
)
"""The form of an address, for JSON Schemas; `normalize_address` decides."""
_NUMBER = re.compile(r"[0-9]{7,15}")
_JID = re.compile(r"(?P<user>[0-9A-Za-z._-]{1,64})(?::[0-9]{1,5})?@(?P<server>s\.whatsapp\.net|c\.us|lid|g\.us)")
_PERSONAL = frozenset({"s.whatsapp.net", "c.us"})


def normalize_address(text: str) -> str:
    """Return the form in which an address is stored and compared.

    A phone number loses a leading plus, spaces and dashes; a personal JID becomes its number; `@lid` and `@g.us` JIDs
    are kept without the device part.

    Raises:
        ValueError: it is neither a number of 7 to 15 digits nor a WhatsApp JID.
    """
    text = text.strip()
    if jid := _JID.fullmatch(text):
        user, server = jid["user"], jid["server"]
        if server not in _PERSONAL:
            return f"{user}@{server}"
        number = user
    else:
        number = text.removeprefix("+").replace(" ", "").replace("-", "")
    if _NUMBER.fullmatch(number):
        return number
    message = "write a phone number of 7 to 15 digits with country code (5491112345678), or a WhatsApp JID"
    raise ValueError(message)


Address = Annotated[Text, AfterValidator(normalize_address)]
"""A phone number of 7 to 15 digits (a leading plus, spaces and dashes are removed) or a WhatsApp JID."""
