"""The facts of a cache as a section of the page: what the teacher says, and what was lost of it."""

import math
from typing import Any

from cache_tools.report import charts, svg
from cache_tools.report.cache_facts import BINS
from cache_tools.report.formatting import brief, count, share, size, small
from cache_tools.report.page import Block, Facts, Group, Note, Section, Table
from cache_tools.report.svg import Chart, chart

Told = dict[str, Any]
STRENGTHS = {
    "crop_area": ("crop area", "share of the picture that the crop takes, %", 100.0),
    "turn_degrees": ("rotation", "degrees, either way", 1.0),
    "erased_area": ("erased area", "share of the view that is erased, %", 100.0),
    "own_share": ("mixing", "the larger picture's share of the view, %", 100.0),
}
"""Name, axis and unit of what can make a view hard."""


def section(facts: Told, pictures: list[Block]) -> Section:
    """The section of a cache.

    Args:
        facts: Of `caches.facts`.
        pictures: Its contact sheet, or why there is none.
    """
    info = facts["info"]
    groups = [Group("", [_identity(info)])]
    if facts["sampled"] is None:
        groups.append(Group("", [Note("No part is committed yet: there is nothing to show.")]))
        return Section(facts["name"], "cache", _lead(facts), groups)
    groups += [
        Group("What the teacher says of the views", [*pictures, *_says(facts)], _of(facts)),
        Group("How often the teacher is right", _right(facts), _labels(facts)),
        Group("What the codec lost", _lost(facts)),
    ]
    return Section(facts["name"], "cache", _lead(facts), groups)


def _lead(facts: Told) -> str:
    info = facts["info"]
    done, total = info["parts"]["done"], info["parts"]["total"]
    words = (
        f"{info['teacher']['name']} on {count(info['targets'])} views of "
        f"{count(info['samples'])} samples, {size(info['bytes'])}"
    )
    if info["bytes_per_view"]:
        words += f" ({info['bytes_per_view']:.1f} bytes a view)"
    right = facts.get("calibration")
    words += f". The teacher is right on {share(right['top1'])} of them" if right else ""
    missing = f" {count(total - done)} of {count(total)} parts are not committed yet."
    return f"{words}.{missing if done < total else ''}"


def _identity(info: Told) -> Facts:
    views, targets = info["spec"]["views"], info["spec"]["targets"]
    kept = f"up to {targets['k_max']} above {targets['tau']:g}" if targets["tau"] else "fixed"
    return Facts(
        {
            "teacher": info["teacher"]["name"],
            "weights": _brief(info["teacher"]["weights_sha256"]),
            "samples": count(info["samples"]),
            "views of each": count(info["views"]),
            "classes": count(info["classes"]),
            "parts committed": f"{count(info['parts']['done'])} of {count(info['parts']['total'])}",
            "stored": f"{size(info['bytes'])} of targets",
            "classes kept of a view": f"{info['kept_classes_mean'] or 0:.2f} ({kept})",
            "view size": f"{views['size']} px" if views else "not known: imported",
            "fingerprint": _brief(info["fingerprint"]),
            "content id": _brief(info["content_id"]),
        }
    )


def _of(facts: Told) -> str:
    seen, all_ = facts["sampled"]["views"], facts["sampled"]["of"]
    if seen == all_:
        return f"All {count(all_)} stored views."
    return f"A sample: {count(seen)} of {count(all_)} stored views, from parts that lie far apart."


def _says(facts: Told) -> list[Block]:
    entropy, kept, classes = facts["entropy"], facts["kept_mass"], facts["kept_classes"]
    alike = brief(math.exp(entropy["mean"]))
    found: list[Block] = [
        chart(
            "Entropy of the teacher's words",
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
            Note(f"Of every view {classes['most']} of {count(total)} classes are kept."),
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
    found.append(
        chart(
            "Probability that is kept",
            f"{100 * kept['mean']:.2f} % on average, never less than {percent[0]:.2f} %.",
            lambda axes: charts.histogram(axes, percent, kept["counts"], "mass of K classes, %"),
        )
    )
    return found


def _labels(facts: Told) -> str:
    if not facts["mixed"] or facts["calibration"] is None:
        return ""
    return (
        "Views are mixed of two pictures: the label is that of the larger share, which a teacher "
        "that sees both should not be sure of."
    )


def _right(facts: Told) -> list[Block]:
    if facts["calibration"] is None:
        return [Note("The cache has no labels, so nobody knows how often the teacher is right.")]
    found: list[Block] = [_calibration(facts["calibration"])]
    if len(facts["by_view"]["view"]) > 1:
        found.append(_by_view(facts["by_view"]))
    found += [_by_strength(name, rows) for name, rows in facts["by_strength"].items()]
    if facts["by_operation"]:
        found.append(_by_operation(facts["by_operation"]))
    return found


def _calibration(told: Told) -> Chart:
    x = [100 * one["confidence"] for one in told["bins"]]
    y = [100 * one["accuracy"] for one in told["bins"]]
    most = max(one["views"] for one in told["bins"])
    gap = told["confidence"] - told["top1"]
    word = "too sure" if gap > 0 else "not sure enough"

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], "--", color=svg.PALE, linewidth=1)
        areas = [6 + 120 * one["views"] / most for one in told["bins"]]
        axes.scatter(x, y, areas, color=svg.SERIES[0], zorder=3, clip_on=False)
        axes.set(xlim=(0, 102), ylim=(0, 102), ylabel="right, %")
        axes.set_xlabel("probability of the first class, % (area: views)")

    return chart(
        "Calibration of the teacher",
        f"Right on {told['top1']:.1f} % of {count(told['views'])} views, and "
        f"{told['confidence']:.1f} % sure: {abs(gap):.1f} points {word}. Expected "
        f"calibration error {told['ece']:.1f} % ({len(told['bins'])} of {BINS} bins have views).",
        draw,
    )


def _by_view(told: Told) -> Chart:
    views, top1 = told["view"], told["top1"]
    worst, best = min(top1), max(top1)
    of = "all views" if told["all_views"] else f"a sample of {count(sum(told['views']))} views"

    def draw(axes: Any) -> None:
        charts.points(axes, views, top1, told["error"], "view number", "right, %")
        charts.integer_axis(axes)

    return chart(
        "Accuracy per view number",
        f"Between {worst:.1f} % (view {views[top1.index(worst)]}) and {best:.1f} % (view "
        f"{views[top1.index(best)]}), over {of}. Bars: standard errors.",
        draw,
    )


def _by_strength(name: str, rows: list[Told]) -> Chart:
    word, label, unit = STRENGTHS[name]
    x, y = [unit * row["mean"] for row in rows], [row["top1"] for row in rows]
    return chart(
        f"Accuracy by {word}",
        f"{y[0]:.1f} % at {x[0]:.3g}, {y[-1]:.1f} % at {x[-1]:.3g} ({label}); {len(rows)} groups "
        f"of about {count(rows[0]['views'])} views. Bars: standard errors.",
        lambda axes: charts.points(axes, x, y, [r["error"] for r in rows], label, "right, %"),
    )


def _by_operation(rows: list[Told]) -> Chart:
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


def _lost(facts: Told) -> list[Block]:
    lost, entropy = facts["lost"], facts["entropy"]["mean"]
    tails, dropped = lost["tail_mass"], lost["dropped_kl_at_most"]
    steps = ", ".join(f"{100 * step:.2g} % at p = {p}" for p, step in lost["half_step"].items())
    rows = [[f"mass not kept, T = {t}", *_three(tail)] for t, tail in tails.items()]
    rows.append(["KL of the dropped classes, at most, nats", *_three(dropped)])
    rows.append(["KL of the rounding, about, nats", *_three(lost["rounded_kl_about"])])
    table = Table(
        "What is not in the cache any more",
        ("", "mean", "median", "99 %"),
        rows,
        "The masses are stored. How the dropped mass was spread is not, so its KL(teacher ‖ "
        "restored) is a bound, from the largest probability that a dropped class can have had; the "
        f"entropy above is too high by as much at most. Rounding: half a step is {steps}; its KL "
        "takes rounding errors as uniform. What a cache really lost, kdcache diff says of it and "
        "the logits it was made from.",
    )
    if lost["all_kept"]:
        return [Note("All classes of every view are kept: only rounding is lost."), table]
    return [_tails(tails), _bound(dropped, entropy), table]


def _tails(tails: dict[str, Told]) -> Chart:
    words = "; ".join(
        f"{small(100 * t['mean'])} % at T = {name} (99 % of the views: at most "
        f"{small(100 * t['p99'])} %)"
        for name, t in tails.items()
    )

    def draw(axes: Any) -> None:
        series = {
            f"T = {name}": ([max(100 * v, 1e-3) for v in t["percentiles"]], [*range(101)])
            for name, t in tails.items()
        }
        charts.lines(axes, series, "mass of the classes that are not kept, %", "% of views")
        charts.log_axis(axes)

    return chart("Mass that is not kept", f"On average {words}.", draw)


def _bound(dropped: Told, entropy: float) -> Chart:
    part = f", {100 * dropped['mean'] / entropy:.1f} % of the mean entropy" if entropy else ""

    def draw(axes: Any) -> None:
        x = [max(v, 1e-5) for v in dropped["percentiles"]]
        charts.lines(axes, {"bound": (x, [*range(101)])}, "KL, at most, nats", "% of views")
        charts.log_axis(axes)

    return chart(
        "What dropping classes can have cost",
        f"KL(teacher ‖ restored) is at most {small(dropped['mean'])} nats on average{part}; for "
        f"99 % of the views at most {small(dropped['p99'])}.",
        draw,
    )


def _three(told: Told) -> list[str]:
    return [small(told[name]) for name in ("mean", "median", "p99")]


def _brief(digest: str) -> str:
    return digest if len(digest) <= 15 else f"{digest[:14]}…"
