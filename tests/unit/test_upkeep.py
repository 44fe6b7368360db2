"""What stands still and what is forgotten, decided without waiting."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from service.persistence.sweeping import Head
from service.upkeep.sweeper import forgotten
from service.upkeep.watching import Watch


def a_head(**fields: Any) -> Head:
    nothing = {"tried": False, "claimed": False, "idle": 0.0, "overdue": None}
    times = {"changed_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return Head(session_id="s", chatbot_id=uuid4(), message_id=uuid4(), **(nothing | times | fields))


@pytest.mark.parametrize(
    ("head", "still", "expected"),
    [
        ({"idle": 60.0}, 3.0, "pending"),
        ({"idle": 59.9}, 3.0, ""),
        ({"idle": 60.0}, 2.9, ""),
        ({"idle": 999.0, "claimed": True}, 999.0, ""),
        ({"idle": 999.0, "overdue": 9.9}, 999.0, ""),
        ({"idle": 999.0, "overdue": -300.0}, 999.0, ""),
        ({"idle": 0.0, "overdue": 10.0}, 3.0, "drain"),
        ({"idle": 0.0, "overdue": 10.0}, 2.9, ""),
        ({"idle": 0.0, "overdue": 10.0, "claimed": True}, 999.0, ""),
    ],
)
def test_a_lane_is_forgotten_when_nobody_touches_it_and_nobody_means_to(
    head: dict[str, Any], still: float, expected: str
) -> None:
    """Whoever sends touches the first message; whoever waits has written down until when."""
    assert forgotten(a_head(**head), still, 60.0) == expected


def test_a_watch_tells_what_stands_still() -> None:
    """What looks the same grows older, what changes begins anew, what was away is forgotten."""
    at = 0.0
    watch = Watch(lambda: at)
    assert watch.look({"a": 1, "b": 1}) == {"a": 0, "b": 0}
    at = 5.0
    assert watch.look({"a": 1, "b": 2, "c": 1}) == {"a": 5, "b": 0, "c": 0}
    at = 7.0
    assert watch.look({"b": 2}) == {"b": 2}
    at = 8.0
    assert watch.look({"a": 1, "b": 2}) == {"a": 0, "b": 3}
