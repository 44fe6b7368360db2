"""Who may call: decided from what a request says, without a server."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook
from starlette.datastructures import Headers

from service.ingress.keys import Keys
from service.ingress.problems import Problem
from service.loopback import is_loopback
from service.simulator.signing import Credentials
from service.simulator.store import Callback

KEY, OTHER_KEY, TOKEN = "k" * 48, "o" * 48, "t" * 48
SECRET = "whsec_" + "c2VjcmV0" * 5
OTHER_SECRET = "whsec_" + "b3RoZXJz" * 5
BODY = '{"name": "Ñandú"}'.encode()
HERE = {"host": "localhost:8000"}


def signed(body: bytes = BODY, *, secret: str = SECRET, age: float = 0) -> dict[str, str]:
    moment = datetime.fromtimestamp(time.time() - age, UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", moment, body.decode()),
    }


def refusal(decide: Any, headers: dict[str, str] | list[tuple[str, str]], *given: Any) -> tuple[int, str] | None:
    """What a decision is: nothing, or the status and the code of its refusal."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    try:
        decide(Headers(raw=raw), *given)
    except Problem as problem:
        return problem.status, problem.code
    return None


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1")),
        *((host, False) for host in ("::", "0::0", "10.0.0.1", "::ffff:10.0.0.1", "128.0.0.1", "fe80::1", "")),
        *((host, False) for host in ("localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "127.1")),
    ],
)
def test_only_names_and_addresses_of_this_machine_are_loopback(host: str, *, here: bool) -> None:
    """Also an IPv4 address in IPv6 form; nothing that merely looks like one."""
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        (bearer(KEY), False),
        (bearer(OTHER_KEY), False),
        ({"authorization": f"bEARER   {KEY} "}, False),
        ({"X-API-Key": OTHER_KEY}, False),
        ({"X-API-Key": KEY, "Authorization": "Basic YTpi"}, False),
        ([("Authorization", "Basic YTpi"), ("Authorization", f"Bearer {KEY}")], False),
        ({}, True),
        (HERE, True),
        (bearer(""), True),
        (bearer(KEY[:-1]), True),
        (bearer(KEY + "k"), True),
        (bearer(f"{KEY},{OTHER_KEY}"), True),
        (bearer("ñ€\x80"), True),
        ({"Authorization": KEY}, True),
        ({"Authorization": f"Basic {KEY}"}, True),
        ({"X-API-Key": ""}, True),
        ({"X-API-Key": f"Bearer {KEY}"}, True),
        ({"Cookie": f"api_key={KEY}"}, True),
    ],
)
def test_a_call_needs_one_of_the_keys(headers: Any, *, refused: bool) -> None:
    """Any of them, by either header; whatever else is said is 401 and never an exception."""
    keys = Keys(api=(KEY, OTHER_KEY))
    assert refusal(keys.admit_call, headers, "1.1") == ((401, "unauthorized") if refused else None)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        *(({"host": host}, None) for host in ("localhost", "localhost:3000", "127.0.0.2:1", "[::1]:8000", "LocalHost")),
        *(
            (HERE | {"origin": origin}, None)
            for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]")
        ),
        *(
            ({"host": host}, "foreign_host")
            for host in ("evil.example", "evil.example:8000", "10.0.0.1", "", "[", "[::2]")
        ),
        *(({"host": host}, "foreign_host") for host in ("evil.example/@localhost", "localhost.evil.example", "a@b:c")),
        ({}, "foreign_host"),
        ([("host", "localhost"), ("host", "evil.example")], "foreign_host"),
        *(
            (HERE | {"origin": origin}, "foreign_origin")
            for origin in ("null", "", "https://evil.example", "localhost")
        ),
        (HERE | {"origin": "http://evil.example:8000"}, "foreign_origin"),
        (HERE | {"origin": "http://localhost@evil.example"}, "foreign_origin"),
    ],
)
def test_without_keys_web_pages_of_others_are_refused(headers: Any, code: str | None) -> None:
    """By calls and by callbacks alike: neither a name that was rebound to this machine, nor a page that posts here."""
    expected = (403, code) if code else None
    assert refusal(Keys().admit_call, headers, "1.1") == expected
    assert refusal(Keys(api=(KEY,)).admit_callback, headers, "127.0.0.1", BODY, "1.1") == expected


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({}, "1.0"),
        *(
            ({name: "x"}, "1.1")
            for name in (
                *("forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "x-client-ip"),
                *("x-cluster-client-ip", "true-client-ip", "cf-connecting-ip", "x-envoy-external-address"),
                *("x-original-forwarded-for", "x-amzn-trace-id", "fly-client-ip"),
            )
        ),
    ],
)
def test_without_keys_what_a_proxy_passed_on_is_refused(headers: dict[str, str], version: str) -> None:
    """By calls and by callbacks: by what proxies add, or by HTTP/1.0, which nginx speaks by itself and adds nothing."""
    given = Headers(HERE | headers)
    for admit, code in (
        (lambda: Keys().admit_call(given, version), "forwarded"),
        (lambda: Keys().admit_callback(given, "127.0.0.1", BODY, version), "callback_from_elsewhere"),
    ):
        with pytest.raises(Problem) as refused:
            admit()
        assert (refused.value.status, refused.value.code) == (403, code)
    Keys(api=(KEY,)).admit_call(Headers(HERE | headers | {"x-api-key": KEY}), version)


@pytest.mark.parametrize(
    ("peer", "headers", "refused"),
    [
        *((peer, {}, False) for peer in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1")),
        *((peer, {}, True) for peer in ("10.0.0.1", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "", "unix:", None)),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, True),
        ("127.0.0.1", {"X-Forwarded-For": ""}, True),
        ("127.0.0.1", {"x-forwarded-proto": "https"}, True),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, True),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, True),
        ("192.0.2.1", {"X-Forwarded-For": "127.0.0.1"}, True),
        ("192.0.2.1", bearer(KEY), True),
    ],
)
def test_a_callback_without_proof_comes_from_this_machine(
    peer: str | None, headers: dict[str, str], *, refused: bool
) -> None:
    """By its socket, and not through a proxy, which would let the world in; a key of the callers is no proof."""
    decision = refusal(Keys(api=(KEY,)).admit_callback, HERE | headers, peer, BODY, "1.1")
    assert decision == ((403, "callback_from_elsewhere") if refused else None)


TOO_OLD, TOO_NEW = 5 * 60 + 2, -(5 * 60 + 60)  # it ages while the test runs
PROOFS: dict[str, tuple[Callable[[], dict[str, str]], bool, bool]] = {  # what is sent; whether token or secret takes it
    "nothing": (dict, False, False),
    "the token": (lambda: bearer(TOKEN), True, False),
    "another token": (lambda: bearer(OTHER_KEY), False, False),
    "a key of the callers": (lambda: bearer(KEY), False, False),
    "the token in the other header": (lambda: {"X-API-Key": TOKEN}, False, False),
    "a signature": (signed, False, True),
    "one of 4 minutes ago": (lambda: signed(age=240), False, True),
    "one of two that fits": (lambda: _changed(signature=lambda fits: f"v1,AAAA v2,AAAA {fits}"), False, True),
    "an old one": (lambda: signed(age=TOO_OLD), False, False),
    "one of the future": (lambda: signed(age=TOO_NEW), False, False),
    "one with another secret": (lambda: signed(secret=OTHER_SECRET), False, False),
    "one of another body": (lambda: signed(b"{}"), False, False),
    "one of another id": (lambda: _changed(id=lambda _: "msg_2"), False, False),
    "one of another time": (lambda: _changed(timestamp=lambda now: str(int(now) - 10)), False, False),
    "no id": (lambda: _changed(id=lambda _: ""), False, False),
    "no time": (lambda: _changed(timestamp=lambda _: ""), False, False),
    "a time that is none": (lambda: _changed(timestamp=lambda _: "nan"), False, False),
    "a time without end": (lambda: _changed(timestamp=lambda _: "1e999"), False, False),
    "a signature without version": (lambda: _changed(signature=lambda fits: fits[3:]), False, False),
    "a signature that is no base64": (lambda: _changed(signature=lambda _: "v1,ñ"), False, False),
    "a signature of another version": (lambda: _changed(signature=lambda fits: fits.replace("v1", "v2")), False, False),
    "too many commas": (lambda: _changed(signature=lambda fits: f"{fits},{fits}"), False, False),
}


def _changed(**changes: Callable[[str], str]) -> dict[str, str]:
    headers = signed()
    return headers | {f"webhook-{name}": change(headers[f"webhook-{name}"]) for name, change in changes.items()}


@pytest.mark.parametrize("proof", PROOFS)
@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.1"])
def test_a_callback_proves_where_it_comes_from(peer: str, proof: str) -> None:
    """By the token or by a signature, whichever is set; by one of them where both are; also from this machine."""
    made, by_token, by_secret = PROOFS[proof]
    for keys, admitted in (
        (Keys(webhook_token=TOKEN), by_token),
        (Keys(webhook_secret=SECRET), by_secret),
        (Keys(webhook_token=TOKEN, webhook_secret=SECRET), by_token or by_secret),
    ):
        expected = None if admitted else (401, "unauthorized")
        assert refusal(keys.admit_callback, HERE | made(), peer, BODY, "1.1") == expected


def test_a_signed_body_that_is_no_text_is_refused() -> None:
    """It cannot have been signed, and raises nothing."""
    decision = refusal(Keys(webhook_secret=SECRET).admit_callback, signed(), "127.0.0.1", b"\xff", "1.1")
    assert decision == (401, "unauthorized")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (Keys(webhook_token=TOKEN), {"WEBHOOK_TOKEN"}),
        (Keys(webhook_secret=SECRET), {"WEBHOOK_SECRET"}),
        (Keys(webhook_token=TOKEN, webhook_secret=SECRET), {"WEBHOOK_TOKEN", "WEBHOOK_SECRET"}),
    ],
)
def test_a_refused_callback_is_told_what_is_asked_for(keys: Keys, said: set[str]) -> None:
    """Only what is set."""
    with pytest.raises(Problem) as refused:
        keys.admit_callback(Headers(HERE), "127.0.0.1", BODY, "1.1")
    assert {name for name in ("WEBHOOK_TOKEN", "WEBHOOK_SECRET") if name in refused.value.detail} == said


def test_secrets_are_not_shown() -> None:
    """Whoever prints the objects that hold them sees none."""
    shown = repr(Keys(api=(KEY,), webhook_token=TOKEN, webhook_secret=SECRET)) + repr(Credentials(TOKEN, SECRET))
    assert not any(secret in shown for secret in (KEY, TOKEN, SECRET))


@pytest.mark.parametrize("given", [(None, None), (TOKEN, None), (None, SECRET), (TOKEN, SECRET)])
def test_the_simulator_brings_what_the_ingress_asks_for(given: tuple[str | None, str | None]) -> None:
    """With the same settings its callbacks are let in, and from another machine too where anything is set."""
    callback = Callback(session_id="s", path="/whatsapp-qr/webhook", body=BODY, due=1_700_000_000.5, position=7)
    keys = Keys(webhook_token=given[0], webhook_secret=given[1])
    headers = HERE | Credentials(*given).headers(callback)
    assert refusal(keys.admit_callback, headers, "127.0.0.1", BODY, "1.1") is None
    expected = None if any(given) else (403, "callback_from_elsewhere")
    assert refusal(keys.admit_callback, headers, "192.0.2.1", BODY, "1.1") == expected


def test_callbacks_of_one_moment_have_ids_of_their_own() -> None:
    """And each keeps its own, whenever it is tried."""
    first, second = (Callback(session_id="s", path="/", body=BODY, due=1_700_000_000, position=n) for n in (1, 2))
    ids = [Credentials(None, SECRET).headers(callback)["webhook-id"] for callback in (first, second, first)]
    assert ids[0] == ids[2] != ids[1]
