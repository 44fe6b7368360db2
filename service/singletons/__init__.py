"""Singleton jobs: each runs in one process at a time, which holds its lease. They repair what redelivery cannot.

running      takes leases and runs the jobs
sweeper      resumes unfinished work in our own rows, deletes old rows
reconciler   compares the session rows with the gateway's answers
dead_letters moves dead letters into a table
gauges       reads values for /metrics from the database
"""
