"""Every kernel beside what this machine allows: GB/s and GOPS of each format, shape and number of rows, and the measured ceilings.

``python -m benchmarks.kernels.run`` (or ``make bench-kernels``) measures them where they work: in programs that the native backend
compiles and its thread pool runs, by the executor's own clock. ``linear.cpp`` times the linear kernels without either, for those who
write them.
"""
