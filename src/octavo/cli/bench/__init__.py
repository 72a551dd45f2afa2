"""``octavo bench latency | throughput | serve | startup``: the commands around ``octavo.bench``."""
