"""The ``reference`` backend: the same programs as ``native``, in NumPy, slow and meant to be read as a specification.

Values are float32. Each operation converts its operands to float64, computes in a fixed order for every row, and
rounds once; so its results are the ones that another backend's errors are measured against.
"""

from octavo.backends.reference.executable import ReferenceBackend, ReferenceExecutable

__all__ = ["ReferenceBackend", "ReferenceExecutable"]
