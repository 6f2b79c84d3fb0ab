"""The part of `kdcache report` that knows runs and sweeps; `cache_tools.report` has the rest.

history.py      rows of the logs, as many as a curve needs
runs.py         a run as facts: curves, likeness to the teacher, confusions
run_section.py  these facts as a section of the page; answers.py its groups by class
several.py      runs beside each other; distillation against labels
sweeps.py       what a sweep found; costs.py what it cost
subjects.py     which of all these a path is
command.py      the command
"""
