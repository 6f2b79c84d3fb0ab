"""The HTML page of `kdcache report` and contact sheets, without a network or a script.

In: opened caches, as statistics (`*_stats`), facts, charts and sections. Out: HTML and PNG. Imports
`data`, `store` and below; `train.report` adds sections of runs and sweeps with the same modules.
"""
