"""What stands still, decided without waiting."""

from service.singletons.watching import Watch


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
