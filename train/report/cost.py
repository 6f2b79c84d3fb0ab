"""Cost of a sweep (`train.sweep.cost`) beside the same with the teacher in the loop."""

from collections.abc import Mapping

from cache_tools.report.formatting import count, duration, size, small
from cache_tools.report.page import Facts, Table


def table(costs: Facts, cache: Facts | None) -> Table:
    """Build the cost section: the sweep as run, beside the same with the teacher in the loop."""
    forwards = costs["forwards"]
    hours = {way: duration(value) for way, value in costs.get("hours", {}).items()}
    ways = {
        "cache": "from the cache: the teacher once",
        "online": "online: the teacher in each run",
        "online_cohorts": "online: the teacher once for each batch of a cohort",
    }
    stored = {ways["cache"]: size(cache["bytes"]) if cache else "–"}
    rows = [[*row, stored.get(row[0], "0 bytes")] for row in _rows(ways, forwards, hours)]
    if imagenet := costs.get("imagenet"):
        # of hours, the teacher's alone
        words = {n: f"projected to ImageNet-1k, {n}" for n in ("cache", "online")}
        of_teacher = imagenet.get("teacher_hours", {}).items()
        hours = {n: f"{duration(value)} of teacher" for n, value in of_teacher}
        rows += [[*row, "–"] for row in _rows(words, imagenet["forwards"], hours)]
    text = "Forwards: samples × views once, against the views that all students were shown. "
    if teacher := costs.get("teacher"):
        each = small(1000 * teacher["seconds_per_view"])
        text += (
            f"Hours: {duration(costs['student_hours'])} of students, measured, + forwards × "
            f"{each} ms (the teacher, measured on {teacher['device']}). "
        )
    if imagenet:
        text += (
            f"ImageNet-1k: {count(imagenet['images'])} images × {count(imagenet['views'])} views "
            f"once, × {count(imagenet['views_shown'])} views shown online."
        )
    return Table(
        f"{count(costs['students'])} finished students: the cache beside online distillation",
        ("", "teacher forwards", "hours", "beside the cache", "stored"),
        rows,
        text,
    )


def _rows(ways: Mapping[str, str], forwards: Facts, hours: Mapping[str, str]) -> list[list[str]]:
    """Build a row of forwards, hours and forwards beside the cache's for each known way."""
    return [
        [
            word,
            count(forwards[way]),
            hours.get(way, "–"),
            f"{forwards[way] / max(forwards['cache'], 1):,.1f} ×",
        ]
        for way, word in ways.items()
        if way in forwards
    ]
