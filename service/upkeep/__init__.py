"""Duties that mend what redelivery cannot: each is done by one process at a time, by a lease row."""
