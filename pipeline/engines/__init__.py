"""Engines: which process makes which parts.

In: a job and its parts. Out: commit records. `base` has the interface, `local` a process for each
GPU of this machine, `ray` an actor for each GPU of a cluster; `launch` chooses. Imports `worker`
and what lies below, never `run`.
"""
