"""Measuring: workloads, the moments at which tokens came, what follows from them, and the loads that make them come.

``workload`` and ``lengths`` say what is asked, ``arrivals`` when, ``offline`` asks an engine in this process, ``http`` and ``serving`` any
server that speaks the OpenAI API, ``startup`` a fresh process; ``records`` and ``summary`` turn moments into figures.
"""
