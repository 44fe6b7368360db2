"""One file, one consumer, one process. A handler may run again for the same message at any time."""
