"""The HTML page of `kdcache report` and contact sheets, without a network or a script.

target_stats.py   numbers of a sample of targets: entropy, kept mass, calibration, loss
augment_stats.py  strength of the augmentation of each view
cache_facts.py    both of them as facts, and the facts as a section of the page
svg.py, charts.py facts to SVG in the reader's light or dark mode
page.py           sections to HTML, everything escaped

In: opened caches. Out: HTML and PNG. Imports `data`, `store` and below; `train.report` adds the
sections of runs and sweeps with the same modules.
"""
