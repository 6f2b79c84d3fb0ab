"""Faults on purpose: kills, damages and hostile inputs, and what kdcache makes of them.

    python -m benchmarks.faults [--only kills|damages|hostile] [--seed 1] [--json FILE]

Every command that writes is killed at random moments and run again; every file of caches, runs,
sweeps, the data folder, betons and shards is damaged and read; hostile inputs of all formats are
opened. Results are compared with those of undisturbed runs, byte for byte. Exit code 1 when
anything was lost, another result without an error, a traceback, or beyond 30 s and 1 GB.
"""
