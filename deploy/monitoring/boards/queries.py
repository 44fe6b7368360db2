"""What the dashboards' expressions have in common."""

from deploy.monitoring.panels import Panel, Unit

IN = 'namespace=~"$namespace"'
RATE = "[$__rate_interval]"
QUEUES = (
    r'queue=~"whatsapp-qr\\.(sessions|conversations)(\\.([0-9]+|entry))?|whatsapp-qr-send(\\.[0-9]+)?'
    r'|whatsapp-qr\\.dead-letters|incoming-messages"'
)


def quantile(share: float, histogram: str, by: str, *matchers: str) -> str:
    """Return a quantile of a histogram, by labels."""
    where = ", ".join((IN, *matchers))
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({histogram}_bucket{{{where}}}{RATE})))"


def rate(counter: str, by: str, *matchers: str) -> str:
    """Return how fast a counter rises, by labels."""
    where = ", ".join((IN, *matchers))
    return f"sum by ({by}) (rate({counter}{{{where}}}{RATE}))"


def stat(title: str, description: str, query: str, *, unit: Unit = "short", bad_from: float | None = None) -> Panel:
    """Return a panel with one number."""
    return Panel(title, description, unit, [(query, "")], bad_from=bad_from, number=True)
