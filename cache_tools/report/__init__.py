"""The HTML page of `kdcache report` and contact sheets, without a network or a script.

target_stats.py   statistics of a sample of targets: entropy, kept mass, loss
augment_stats.py  strength of the augmentation of each view
cache_facts.py    both as JSON-ready facts; cache_section.py the facts as a section
svg.py, charts.py facts to SVG, in light or dark mode
contact_sheet.py  views as pictures; sheet_source.py their source, pictures.py the JPEG of a page
page.py           sections to HTML, everything escaped

In: opened caches. Out: HTML and PNG. Imports `data`, `store` and below; `train.report` adds the
sections of runs and sweeps with the same modules.
"""
