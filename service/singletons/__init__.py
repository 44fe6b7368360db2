"""Singleton jobs: each runs in one process at a time, which holds its lease. They repair what redelivery cannot.

running      takes leases and runs the jobs
sweeper      finishes what is unfinished in our own rows and nobody works on
reconciler   compares the rows of the sessions with what the gateway says
dead_letters moves dead letters into a table
gauges       shows what the database says at /metrics
"""
