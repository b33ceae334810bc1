"""What cellmeter costs and misses on this machine, beside its peers: ``python -m bench [NAMES…]`` (see docs/benchmarks.md)."""
