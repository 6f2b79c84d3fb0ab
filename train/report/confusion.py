"""A student's predictions by class, beside the teacher's or the labels, as a group of the page."""

from cache_tools.report import charts
from cache_tools.report.formatting import count, share
from cache_tools.report.page import Element, Facts, Group, Table
from cache_tools.report.svg import SIZE, Chart, chart
from train.evaluate.table import NAMES

_FEW = 24
"""Classes up to which each has a bar."""


def last_part(place: str) -> str:
    """Return the last part of a folder or URL."""
    return place.rstrip("/").rpartition("/")[2]


def group(facts: Facts) -> Group:
    """One set of pictures: agreement per class, confusions, and the most frequent ones."""
    of_teacher = facts["due"] == "teacher"
    title = "Beside the teacher, on cached views" if of_teacher else "Beside the labels"
    word = "the teacher's first class" if of_teacher else "the label"
    lead = (
        f"{count(facts['pictures'])} images of {last_part(facts['on'])}; "
        f"{NAMES[facts['network']]}. It predicts {word} on {share(facts['agreement'])}."
    )
    blocks: list[Element] = [_by_class(facts, word)]
    if "matrix" in facts and len(facts["matrix"]["names"]) > 1:
        blocks.append(_matrix(facts, "teacher" if of_teacher else "label"))
    if facts["confusions"]:
        blocks.append(_pairs(facts, "teacher" if of_teacher else "label"))
    return Group(title, blocks, lead)


def _by_class(facts: Facts, word: str) -> Chart:
    worst, shares = facts["worst"], facts["shares"]
    lowest = worst[0]
    finding = (
        f"{word[0].upper()}{word[1:]} is predicted on {share(facts['agreement'])}; least often "
        f"for {lowest['name']}, {share(lowest['agreement'])} of {count(lowest['pictures'])}; "
        f"{share(shares[-1])} for the best of {count(facts['classes'])}."
    )
    if facts["classes"] <= _FEW:
        return chart(
            "Agreement per class",
            finding,
            lambda axes: charts.bars(
                axes, [one["name"] for one in worst], [one["agreement"] for one in worst], [],
                f"{word} is named first, %",
            ),
            charts.row_size(len(worst)),
        )  # fmt: skip
    edges = [5.0 * i for i in range(21)]
    counts = [sum(low <= s < low + 5 or s == low + 5 == 100 for s in shares) for low in edges[:-1]]
    return chart(
        "Agreement per class",
        finding,
        lambda axes: charts.histogram(axes, edges, counts, f"{word} is named first, %", "classes"),
    )


def _matrix(facts: Facts, due: str) -> Chart:
    names, counts = facts["matrix"]["names"], facts["matrix"]["counts"]
    sums = [max(sum(row), 1) for row in counts]
    cells = {
        (r, c): value / sums[r]
        for r, row in enumerate(counts)
        for c, value in enumerate(row)
        if value
    }
    wrong = sum(sum(row) - row[i] for i, row in enumerate(counts))
    first = facts["confusions"][0] if facts["confusions"] else None
    most = f"; most often {first['due']} → {first['answer']}" if first else ""
    few = len(names) <= 12
    side = 4.0 if few else 7.2
    return chart(
        "Confusions",
        f"{count(wrong)} of {count(sum(sums))} predictions differ from the {due}{most}. Percent "
        "of each row; the diagonal is agreement.",
        lambda axes: charts.matrix(axes, cells, names, "predicted by the student", f"{due}"),
        (SIZE[0] if few else side, side),
        wide=not few,
    )


def _pairs(facts: Facts, due: str) -> Table:
    rows = [
        [one["due"], one["answer"], count(one["times"]), share(one["share"])]
        for one in facts["confusions"]
    ]
    return Table(
        "Most frequent confusions",
        (due, "student", "times", "of class"),
        rows,
        words=2,
        wide=False,
    )
