"""Settings that are allowed one by one and do not go together are refused at the start, with a sentence."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli import main
from service.contradictions import BROKER_CONSUMER_TIMEOUT, contradictions
from service.messaging.subscriptions import GRACE_SECONDS, LONGEST_PATIENCE
from service.settings import Settings

KEY = "0123456789abcdef"


def settings(**fields: Any) -> Settings:
    """Return settings that the environment does not change."""
    return Settings.model_construct(**{**{name: one.default for name, one in Settings.model_fields.items()}, **fields})


def test_the_defaults_agree() -> None:
    """As they come they contradict each other nowhere."""
    assert list(contradictions(settings())) == []


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"prefetch": 1000}, {"PREFETCH", "GATEWAY_TIMEOUT", "RELEASE_AFTER"}),
        ({"gateway_timeout": 30.0}, {"PREFETCH", "GATEWAY_TIMEOUT", "RELEASE_AFTER"}),
        ({"release_after": 1000.0}, {"PREFETCH", "GATEWAY_TIMEOUT", "RELEASE_AFTER"}),
        ({"stuck_after": 10.0}, {"STUCK_AFTER", "GATEWAY_TIMEOUT"}),
        ({"send_expiry": 9.0}, {"SEND_EXPIRY", "GATEWAY_TIMEOUT"}),
        ({"send_rate": 1 / 3600}, {"SEND_EXPIRY", "SEND_RATE"}),
        ({"internal_port": 8000}, {"HTTP_PORT", "INTERNAL_PORT"}),
    ],
)
def test_a_contradiction_names_the_settings(fields: dict[str, Any], names: set[str]) -> None:
    """One sentence, with all that may be changed and the values as they are."""
    [sentence] = contradictions(settings(**fields))
    assert set(re.findall("[A-Z]+(?:_[A-Z]+)+|PREFETCH", sentence)) >= names


def test_a_token_must_not_be_a_key_of_callers() -> None:
    """A caller could report messages as the gateway does. The sentence does not show it."""
    same = Settings(webhook_token=KEY, api_keys=KEY)  # type: ignore[arg-type]
    [sentence] = contradictions(same)
    assert KEY not in sentence


@given(st.floats(0.1, 600), st.floats(1, 1700))
def test_the_proposed_prefetch_agrees(timeout: float, release_after: float) -> None:
    """What the sentence proposes is accepted, one more is not; where none would be it says what else to change."""
    given = {"gateway_timeout": timeout, "release_after": release_after, "stuck_after": 1e6, "send_expiry": 1e6}
    found = [one for one in contradictions(settings(prefetch=10**9, **given)) if "PREFETCH" in one]
    if (proposed := re.search("PREFETCH to at most ([0-9]+)", found[0])) is None:
        assert "Lower GATEWAY_TIMEOUT or RELEASE_AFTER" in found[0]
        held = max(release_after, LONGEST_PATIENCE)
        assert held + GRACE_SECONDS + max(1.8 * timeout, 1.5 * timeout + 4) > BROKER_CONSUMER_TIMEOUT
        return
    most = int(proposed[1])
    assert list(contradictions(settings(prefetch=most, **given))) == []
    assert len(list(contradictions(settings(prefetch=most + 1, **given)))) == 1


def test_the_command_says_all_of_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each process refuses to start, whatever it is: exit status 2, a line for each."""
    monkeypatch.setattr("sys.argv", ["whatsapp-qr", "outbound-consumer"])
    monkeypatch.setenv("PREFETCH", "1000")
    monkeypatch.setenv("STUCK_AFTER", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "PREFETCH=1000" in error
    assert "STUCK_AFTER=1" in error
