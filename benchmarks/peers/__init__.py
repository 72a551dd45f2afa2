"""Octavo beside other engines, on this machine: one workload, one client, one measurement at a time.

``python -m benchmarks.peers.run`` (or ``make bench-peers``) builds what is missing, measures and writes the report.
"""
