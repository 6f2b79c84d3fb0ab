"""Section of a cache: stored targets, accuracy of the teacher, loss of the codec."""

import math
from typing import Any

from cache_tools.report import charts, svg
from cache_tools.report.cache_facts import BINS
from cache_tools.report.formatting import brief, count, share, size, small
from cache_tools.report.page import DefinitionList, Element, Facts, Group, Paragraph, Section, Table
from cache_tools.report.svg import Chart, chart
from cache_tools.runtime.text import counted

STRENGTHS = {
    "crop_area": ("crop area", "share of the image inside the crop, %", 100.0),
    "turn_degrees": ("rotation", "degrees, either way", 1.0),
    "erased_area": ("erased area", "share of the view that is erased, %", 100.0),
    "own_share": ("mixing", "the larger picture's share of the view, %", 100.0),
}
"""Name, axis and unit of each strength of augmentation."""


def section(facts: Facts, pictures: list[Element]) -> Section:
    """Build the section of a cache; `pictures`: contact sheet, or the reason for its absence."""
    info = facts["info"]
    groups = [Group("", [_identity(info)])]
    if facts["sampled"] is None:
        groups.append(Group("", [Paragraph("No part is committed yet.")]))
        return Section(facts["name"], "cache", _lead(facts), groups)
    seen, all_ = facts["sampled"]["views"], facts["sampled"]["of"]
    note = f"All {count(all_)} stored views."
    if seen != all_:
        note = f"A sample: {count(seen)} of {count(all_)} stored views, from parts far apart."
    groups += [
        Group("Stored targets", [*pictures, *_targets(facts)], note),
        _accuracy(facts),
        Group("Loss of the codec", _codec_loss(facts)),
    ]
    return Section(facts["name"], "cache", _lead(facts), groups)


def _lead(facts: Facts) -> str:
    info = facts["info"]
    done, total = info["parts"]["done"], info["parts"]["total"]
    words = (
        f"{info['teacher']['name']} on {counted(info['targets'], 'view')} of "
        f"{counted(info['samples'], 'sample')}, {size(info['bytes'])}"
    )
    if info["bytes_per_view"]:
        words += f" ({info['bytes_per_view']:.1f} bytes a view)"
    right = facts.get("calibration")
    words += f". The teacher is right on {share(right['top1'])} of them" if right else ""
    missing = f" {count(total - done)} of {count(total)} parts are not committed yet."
    return f"{words}.{missing if done < total else ''}"


def _identity(info: Facts) -> DefinitionList:
    views, targets = info["spec"]["views"], info["spec"]["targets"]
    kept = f"up to {targets['k_max']} above {targets['tau']:g}" if targets["tau"] else "fixed"
    return DefinitionList(
        {
            "teacher": info["teacher"]["name"],
            "weights": _short_digest(info["teacher"]["weights_sha256"]),
            "samples": count(info["samples"]),
            "views of each": count(info["views"]),
            "classes": count(info["classes"]),
            "parts committed": f"{count(info['parts']['done'])} of {count(info['parts']['total'])}",
            "stored": f"{size(info['bytes'])} of targets",
            "classes kept of a view": f"{info['kept_classes_mean'] or 0:.2f} ({kept})",
            "view size": f"{views['size']} px" if views else "unknown: imported",
            "fingerprint": _short_digest(info["fingerprint"]),
            "content id": _short_digest(info["content_id"]),
        }
    )


def _targets(facts: Facts) -> list[Element]:
    entropy, kept, classes = facts["entropy"], facts["kept_mass"], facts["kept_classes"]
    alike = brief(math.exp(entropy["mean"]))
    found: list[Element] = [
        chart(
            "Entropy of the teacher's predictions",
            f"{entropy['mean']:.2f} nats on average, half of the views above "
            f"{entropy['median']:.2f}, of at most {entropy['most']:.2f} "
            f"(e^{entropy['mean']:.2f} = {alike} equally likely classes).",
            lambda axes: charts.histogram(
                axes, entropy["edges"], entropy["counts"], "entropy at T = 1, nats"
            ),
        )
    ]
    total = facts["info"]["classes"]
    if classes["least"] == classes["most"]:
        return [
            *found,
            Paragraph(f"Of every view {classes['most']} of {count(total)} classes are kept."),
        ]
    found.append(
        chart(
            "Classes kept of a view",
            f"{classes['mean']:.1f} of {count(total)} on average, from {classes['least']} to "
            f"{classes['most']}; half of the views keep {classes['median']:.0f} or fewer.",
            lambda axes: charts.histogram(axes, classes["edges"], classes["counts"], "classes, K"),
        )
    )
    percent = [100 * edge for edge in kept["edges"]]
    of_kept = chart(
        "Probability that is kept",
        f"{100 * kept['mean']:.2f} % on average, never less than {percent[0]:.2f} %.",
        lambda axes: charts.histogram(axes, percent, kept["counts"], "mass of K classes, %"),
    )
    return [*found, of_kept]


def _accuracy(facts: Facts) -> Group:
    title = "Accuracy of the teacher"
    if facts["calibration"] is None:
        unknown = "The cache has no labels: the accuracy of the teacher is unknown."
        return Group(title, [Paragraph(unknown)])
    found: list[Element] = [_calibration(facts["calibration"])]
    if len(facts["by_view"]["view"]) > 1:
        found.append(_by_view(facts["by_view"]))
    found += [_by_strength(name, rows) for name, rows in facts["by_strength"].items()]
    if facts["by_operation"]:
        found.append(_by_operation(facts["by_operation"]))
    mixed = (
        "Views are mixed of two pictures: the label is that of the larger share, which a teacher "
        "should predict with low confidence where both are visible."
    )
    return Group(title, found, mixed if facts["mixed"] else "")


def _calibration(facts: Facts) -> Chart:
    x = [100 * one["confidence"] for one in facts["bins"]]
    y = [100 * one["accuracy"] for one in facts["bins"]]
    most = max(one["views"] for one in facts["bins"])
    gap = facts["confidence"] - facts["top1"]
    word = "overconfident" if gap > 0 else "underconfident"

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], "--", color=svg.PALE, linewidth=1)
        areas = [6 + 120 * one["views"] / most for one in facts["bins"]]
        axes.scatter(x, y, areas, color=svg.SERIES[0], zorder=3, clip_on=False)
        axes.set(xlim=(0, 102), ylim=(0, 102), ylabel="right, %")
        axes.set_xlabel("probability of the first class, % (area: views)")

    return chart(
        "Calibration of the teacher",
        f"Right on {facts['top1']:.1f} % of {count(facts['views'])} views, and "
        f"{facts['confidence']:.1f} % sure: {abs(gap):.1f} points {word}. Expected "
        f"calibration error {facts['ece']:.1f} % ({len(facts['bins'])} of {BINS} bins have views).",
        draw,
    )


def _by_view(facts: Facts) -> Chart:
    views, top1 = facts["view"], facts["top1"]
    worst, best = min(top1), max(top1)
    of = "all views" if facts["all_views"] else f"a sample of {count(sum(facts['views']))} views"

    def draw(axes: Any) -> None:
        charts.points(axes, views, top1, facts["error"], "view number", "right, %")
        charts.integer_axis(axes)

    return chart(
        "Accuracy per view number",
        f"Between {worst:.1f} % (view {views[top1.index(worst)]}) and {best:.1f} % (view "
        f"{views[top1.index(best)]}), over {of}. Bars: standard errors.",
        draw,
    )


def _by_strength(name: str, rows: list[Facts]) -> Chart:
    word, label, unit = STRENGTHS[name]
    x, y = [unit * row["mean"] for row in rows], [row["top1"] for row in rows]
    return chart(
        f"Accuracy by {word}",
        f"{y[0]:.1f} % at {x[0]:.3g}, {y[-1]:.1f} % at {x[-1]:.3g} ({label}); {len(rows)} groups "
        f"of about {count(rows[0]['views'])} views. Bars: standard errors.",
        lambda axes: charts.points(axes, x, y, [r["error"] for r in rows], label, "right, %"),
    )


def _by_operation(rows: list[Facts]) -> Chart:
    worst = rows[0]
    return chart(
        "Accuracy by operation",
        f"Lowest with {worst['operation']}: {worst['top1']:.1f} %, against "
        f"{worst['top1_without']:.1f} % of the views without it. Bars: standard errors.",
        lambda axes: charts.bars(
            axes,
            [row["operation"] for row in rows],
            [row["top1"] for row in rows],
            [row["error"] for row in rows],
            "right on views with the operation, %",
        ),
        charts.row_size(len(rows)),
    )


def _codec_loss(facts: Facts) -> list[Element]:
    lost, entropy = facts["lost"], facts["entropy"]["mean"]
    tails, dropped = lost["tail_mass"], lost["dropped_kl_at_most"]
    steps = ", ".join(f"{100 * step:.2g} % at p = {p}" for p, step in lost["half_step"].items())
    rows = [[f"mass not kept, T = {t}", *_three(tail)] for t, tail in tails.items()]
    rows.append(["KL of the dropped classes, at most, nats", *_three(dropped)])
    rows.append(["KL of the rounding, about, nats", *_three(lost["rounded_kl_about"])])
    table = Table(
        "Not stored",
        ("", "mean", "median", "99 %"),
        rows,
        "The masses are stored. The distribution of the dropped mass is not, so its "
        "KL(teacher ‖ restored) is a bound, from the largest probability that a dropped class can "
        f"have had; the entropy above is too high by as much at most. Rounding: half a step is "
        f"{steps}; its KL assumes uniform rounding errors. kdcache diff of a cache and the logits "
        "it was made from measures its actual loss.",
    )
    if lost["all_kept"]:
        return [Paragraph("All classes of every view are kept: only rounding is lost."), table]
    words = "; ".join(
        f"{small(100 * t['mean'])} % at T = {name} (99 % of the views: at most "
        f"{small(100 * t['p99'])} %)"
        for name, t in tails.items()
    )
    of_tails = {
        f"T = {name}": [max(100 * v, 1e-3) for v in t["percentiles"]] for name, t in tails.items()
    }
    part = f", {100 * dropped['mean'] / entropy:.1f} % of the mean entropy" if entropy else ""
    bound = {"bound": [max(v, 1e-5) for v in dropped["percentiles"]]}
    return [
        chart(
            "Mass that is not kept",
            f"On average {words}.",
            lambda axes: _percentiles(axes, of_tails, "mass of the classes that are not kept, %"),
        ),
        chart(
            "Bound on the loss from dropped classes",
            f"KL(teacher ‖ restored) is at most {small(dropped['mean'])} nats on average{part}; "
            f"for 99 % of the views at most {small(dropped['p99'])}.",
            lambda axes: _percentiles(axes, bound, "KL, at most, nats"),
        ),
        table,
    ]


def _percentiles(axes: Any, values: dict[str, list[float]], label: str) -> None:
    """Draw the share of views up to each value, on a logarithmic axis."""
    series = {name: (x, range(101)) for name, x in values.items()}
    charts.lines(axes, series, label, "% of views")
    charts.log_axis(axes)


def _three(facts: Facts) -> list[str]:
    return [small(facts[name]) for name in ("mean", "median", "p99")]


def _short_digest(digest: str) -> str:
    return digest if len(digest) <= 15 else f"{digest[:14]}…"
