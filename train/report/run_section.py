"""The facts of a run as a section of the page: curves, scores and confusions."""

from typing import Any

from cache_tools.report import charts
from cache_tools.report.charts import EPOCH, STEP
from cache_tools.report.formatting import count, share, small
from cache_tools.report.page import DefinitionList, Element, Facts, Group, Paragraph, Section, Table
from cache_tools.report.svg import Chart, chart
from cache_tools.runtime.text import counted
from train.evaluate.table import NAMES
from train.report import confusion, history
from train.report.history import Row

_TERMS = {"loss": "loss", "kd_loss": "on the teacher", "task_loss": "on labels"}


def section(facts: Facts) -> Section:
    """Build the section of a run."""
    groups = [Group("", [_identity(facts)])]
    steps = facts["steps"]
    found = _losses(steps), _accuracy(facts["epochs"]), _rate(steps), _waiting(steps)
    curves: list[Element] = [one for one in found if one is not None]
    groups.append(Group("Training", curves or [Paragraph("No step is logged yet.")]))
    if facts["measured"] is None:
        groups.append(Group("Predictions", [Paragraph(facts["left_out"])]))
        return Section(facts["name"], "run", _lead(facts), groups)
    groups.append(Group("Predictions", [_scores(facts["measured"])]))
    groups += [confusion.group(one) for one in facts["answers"]]
    return Section(facts["name"], "run", _lead(facts), groups)


def way(config: Facts) -> str:
    """Loss and targets of a student, in a few words."""
    recipe = config["recipe"]
    if recipe["mode"] == "labels":
        return "from labels"
    loss = "" if recipe["loss"] == "kd" else f" by {recipe['loss']}"
    return f"from {config['teacher']['name']}{loss} at T = {recipe['temperature']:g}"


def _lead(facts: Facts) -> str:
    config, result = facts["config"], facts["result"]
    words = (
        f"{config['recipe']['student']} {way(config)}, on {counted(config['samples'], 'image')} in "
        f"{counted(config['recipe']['epochs'], 'epoch')}"
    )
    if result is None:
        done = 1 + int(facts["epochs"][-1].get("epoch", 0)) if facts["epochs"] else 0
        why = f" ({facts['state']}: {facts['why']})" if facts["why"] else ""
        return f"{words}: not finished, after {count(done)} of them{why}."
    top1 = "not measured" if result["top1"] is None else share(result["top1"])
    ema = "" if result["top1_ema"] is None else f", its moving average {share(result['top1_ema'])}"
    return f"{words}: top-1 {top1}{ema}."


def _identity(facts: Facts) -> DefinitionList:
    config, recipe, result = facts["config"], facts["config"]["recipe"], facts["result"]
    size, measured = config["view_size"], config.get("eval_size", config["view_size"])
    items = {
        "student": recipe["student"],
        "mode": recipe["mode"],
        "teacher": config["teacher"]["name"],
        "loss": recipe["loss"] if recipe["mode"] != "labels" else recipe["task_loss"],
        "temperature": f"{recipe['temperature']:g}",
        "epochs": count(recipe["epochs"]),
        "batch": count(recipe["batch_size"]),
        "size": f"{size} px" if size == measured else f"{size} px, measured at {measured} px",
        "learning rate": f"{recipe['lr']:g} ({recipe['opt']}, {recipe['sched']})",
        "views of the cache": count(config["num_views"]),
        "seed": str(recipe["seed"]),
    }
    if result:
        items["images/s"] = count(result["images_per_second"])
        items["waiting for data"] = share(100 * result["data_wait"])
    return DefinitionList(items)


def _losses(steps: list[Row]) -> Chart | None:
    terms = {word: history.column(steps, "step", key) for key, word in _TERMS.items()}
    series = {word: xy for word, xy in terms.items() if xy[0]}
    if not series:
        return None
    if len(series) == 2:  # the loss is its only term, but for a weight
        series.pop("on the teacher" if "on the teacher" in series else "on labels")
    last = next(iter(series.values()))[0][-1]
    words = "; ".join(f"{n}: {small(y[0])} to {small(y[-1])}" for n, (_, y) in series.items())
    return chart(
        "Loss",
        f"From first to last of {counted(round(last), 'step')}: {words}.",
        lambda axes: charts.lines(axes, series, STEP, "loss"),
    )


def _accuracy(epochs: list[Row]) -> Chart | None:
    named = {"top1": NAMES["student"], "top1_ema": NAMES["student_ema"]}
    series = {}
    for key, word in named.items():
        x, y = history.column(epochs, "epoch", key)
        if x:
            series[word] = ([epoch + 1 for epoch in x], y)
    if not series:
        return None
    words = "; ".join(
        f"{name} {y[0]:.1f} to {y[-1]:.1f} %, at most {max(y):.1f} % in epoch "
        f"{x[y.index(max(y))]:.0f}"
        for name, (x, y) in series.items()
    )

    def draw(axes: Any) -> None:
        charts.lines(axes, series, EPOCH, "top-1, %")

    return chart("Accuracy on the validation split", f"{words}.", draw)


def _rate(steps: list[Row]) -> Chart | None:
    x, y = history.column(steps, "step", "lr")
    if not x:
        return None
    return chart(
        "Learning rate",
        f"{small(max(y))} at most, at step {x[y.index(max(y))]:.0f}; {small(y[-1])} at the end.",
        lambda axes: charts.lines(axes, {"lr": (x, y)}, STEP, "learning rate"),
    )


def _waiting(steps: list[Row]) -> Chart | None:
    x, wait = history.column(steps, "step", "data_wait")
    _, speed = history.column(steps, "step", "images_per_second")
    if not x:
        return None
    percent = [100 * value for value in wait]
    middle = sorted(percent)[len(percent) // 2]

    def draw(axes: Any) -> None:
        charts.lines(axes, {"wait": (x, percent)}, STEP, "share of time, %")
        axes.set_ylim(0, max(5.0, 1.1 * max(percent)))

    images = f" at {count(sorted(speed)[len(speed) // 2])} images/s" if speed else ""
    return chart(
        "Waiting for data",
        f"Of the time of a step {middle:.1f} % in the median{images}, and at most "
        f"{max(percent):.1f} %.",
        draw,
    )


def _scores(measured: Facts) -> Table:
    """Rows of `kdcache eval` for a run."""
    sets = [(confusion.last_part(one["source"]), one["networks"]) for one in measured["data"]]
    if seen := measured["cache"]:
        words = f"{counted(seen['views'], 'cached view')} ({counted(seen['parts'], 'part')})"
        sets.append((words, seen["networks"]))
    rows = [
        [
            f"{where}: {'teacher, as stored' if name == 'teacher' else NAMES[name]}",
            count(of["images"]),
            *(share(of[key]) for key in ("top1", "top5", "ece", "agreement")),
            "–" if of["kl"] is None else f"{of['kl']:.4f}",
        ]
        for where, networks in sets
        for name, of in networks.items()
    ]
    return Table(
        "Measured now",
        ("", "pictures", "top-1", "top-5", "ECE", "agrees", "KL"),
        rows,
        "agrees: the first class is the teacher's; KL(teacher ‖ student) in nats; ECE: expected "
        "calibration error in 15 bins.",
    )
