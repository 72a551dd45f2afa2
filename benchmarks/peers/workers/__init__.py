"""Child processes, one module per engine, each run in that engine's own environment; ``lines.py`` is how they are spoken to.

They import nothing of this project but ``workload``, ``lines`` and, in ``octavo``'s own case, ``octavo``.
"""
