"""One module per consumer, one process per consumer. A handler may run again for the same message at any time."""
