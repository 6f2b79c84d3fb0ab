"""Table of `kdcache eval`: a row for each data set and network."""

from typing import Any

from cache_tools.runtime.text import counted

NAMES = {"student": "student", "student_ema": "student, EMA", "teacher": "teacher"}
STORED = "teacher, as stored"
COLUMNS = (
    ("top1", "top-1", 1),
    ("top5", "top-5", 1),
    ("real_top1", "ReaL", 1),
    ("ece", "ECE", 1),
    ("agreement", "agrees", 1),
    ("kl", "KL", 4),
)
"""Key, head and decimals."""


def table(facts: dict[str, Any]) -> str:
    """Format the facts of `measure` as lines of text."""
    head = ["", "", *(title for _, title, _ in COLUMNS)]
    rows = []
    for of in [*facts["data"], *([facts["cache"]] if facts["cache"] else [])]:
        cached = "path" in of
        if cached:
            source = f"{counted(of['views'], 'cached view')} ({counted(of['parts'], 'part')})"
        else:
            images = counted(of["networks"]["student"]["images"], "image")
            source = f"{of['source']} ({images})"
        for name, scores in of["networks"].items():
            values = [(scores[key], digits) for key, _, digits in COLUMNS]
            cells = ["" if value is None else f"{value:.{digits}f}" for value, digits in values]
            rows.append([source, STORED if name == "teacher" and cached else NAMES[name], *cells])
    shown = [c for c in range(len(head)) if c < 2 or any(row[c] for row in rows)]
    widths = [max(len(line[c]) for line in [head, *rows]) for c in range(len(head))]
    lines, last = [], ""
    for line in [head, *rows]:
        first = "" if line[0] == last else line[0]
        last = line[0]
        cells = [first.ljust(widths[0]), line[1].ljust(widths[1])]
        cells += [line[c].rjust(widths[c]) for c in shown[2:]]
        lines.append("  ".join(cells).rstrip())
    for of in facts["data"]:
        wrong = [f"{c['due']} → {c['answer']} ({c['share']:.0f} %)" for c in of["confusions"]]
        lines += [f"most frequent confusions: {', '.join(wrong)}"] * bool(wrong)
    return "\n".join([*lines, _legend(facts, [head[c] for c in shown])])


def _legend(facts: dict[str, Any], shown: list[str]) -> str:
    lines = [
        f"% of images as timm's validate.py prepares them: {facts['view_size']} px, "
        f"{facts['interpolation']}, crop {facts['crop']:g} ({facts['crop_mode']})"
    ]
    if "ReaL" in shown:
        lines.append("ReaL: top-1 by ReaL labels, over the images that have some")
    if "ECE" in shown:
        lines.append(
            f"ECE: expected calibration error, {facts['ece_bins']} bins of equal width, in %"
        )
    if "agrees" in shown:
        lines.append("agrees: same first class as the teacher; KL: KL(teacher ‖ student) in nats")
    return "\n".join(lines)
