"""Duties that mend what redelivery cannot: each is done by one process at a time, by a lease row.

hosting      takes leases and runs duties: Upkeep
sweeper      finishes what is unfinished in our own rows and nobody works on
reconciler   compares the rows of the sessions with what the gateway says
dead_letters moves dead letters into a table
gauges       shows what the database says at /metrics
"""
