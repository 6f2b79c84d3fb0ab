"""`kdcache report`: one page of HTML that says what is in a cache, without a network or a script.

    said.py      numbers of a sample of targets: entropy, kept mass, calibration, what was lost
    strength.py  how hard the augmentation of each view was
    caches.py    both of them as facts, and the facts as a section of the page
    svg.py       facts to SVG in the reader's light or dark mode; charts.py has kinds of charts
    page.py      sections to HTML, everything escaped

Runs and sweeps have theirs in `train.report`; they draw and write with the same two modules.
"""
