"""Cost of a sweep (`train.sweep.cost`) beside the same with the teacher in the loop."""

from cache_tools.report.formatting import count, duration, size, small
from cache_tools.report.page import Facts, Table


def table(costs: Facts, cache: Facts | None) -> Table:
    """Build the cost section: the sweep as run, beside the same with the teacher in the loop."""
    forwards, hours = costs["forwards"], costs.get("hours", {})
    ways = {
        "cache": "from the cache: the teacher once",
        "online": "online: the teacher in each run",
        "online_cohorts": "online: the teacher once for each batch of a cohort",
    }
    rows = [
        [
            word,
            count(forwards[way]),
            duration(hours[way]) if way in hours else "–",
            f"{forwards[way] / max(forwards['cache'], 1):,.1f} ×",
            (size(cache["bytes"]) if cache else "–") if way == "cache" else "0 bytes",
        ]
        for way, word in ways.items()
        if way in forwards
    ]
    if imagenet := costs.get("imagenet"):
        rows += _projected(imagenet)
    return Table(
        f"{count(costs['students'])} finished students: the cache beside online distillation",
        ("", "teacher forwards", "hours", "beside the cache", "stored"),
        rows,
        _formula(costs),
    )


def _projected(imagenet: Facts) -> list[list[str]]:
    """Build the same on ImageNet; of hours, the teacher's alone."""
    forwards, hours = imagenet["forwards"], imagenet.get("teacher_hours", {})
    words = {
        "cache": "projected to ImageNet-1k, cache",
        "online": "projected to ImageNet-1k, online",
    }
    return [
        [
            word,
            count(forwards[way]),
            f"{duration(hours[way])} of teacher" if way in hours else "–",
            f"{forwards[way] / max(forwards['cache'], 1):,.1f} ×",
            "–",
        ]
        for way, word in words.items()
        if way in forwards
    ]


def _formula(costs: Facts) -> str:
    text = "Forwards: samples × views once, against the views that all students were shown. "
    if teacher := costs.get("teacher"):
        each = small(1000 * teacher["seconds_per_view"])
        text += (
            f"Hours: {duration(costs['student_hours'])} of students, measured, + forwards × "
            f"{each} ms (the teacher, measured on {teacher['device']}). "
        )
    if imagenet := costs.get("imagenet"):
        text += (
            f"ImageNet-1k: {count(imagenet['images'])} images × {count(imagenet['views'])} views "
            f"once, × {count(imagenet['views_shown'])} views shown online."
        )
    return text
