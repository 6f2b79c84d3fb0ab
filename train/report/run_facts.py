"""A run in numbers: its curves, and its student's predictions beside the teacher's and the labels.

What is measured is what `kdcache eval` measures, in one pass over some cached views and over the
validation split; of a run with a moving average, the average's predictions are counted by class.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheIncomplete, KdcacheError
from cache_tools.spec.class_names import Names
from cache_tools.storage import seal
from train import run_dir, run_state
from train.evaluate import confusion, evaluate
from train.evaluate.confusion import Confusions, Pairs
from train.evaluate.evaluate import EvalRequest
from train.evaluate.models import EvalOptions
from train.report import history

log = logging.getLogger("kdcache")
MATRIX = 50
"""Classes up to which all pairs are listed."""
_WORST = 24
"""Of so many classes, all; else the worst."""
_PAIRS = 12


def facts(folder: Path, options: EvalOptions, views: int) -> dict[str, Any]:
    """Facts of a run; its students predict `views` cached views (0: none, nor other images)."""
    config = run_dir.read_config(folder)
    if "teacher" not in config:
        raise CacheIncomplete(
            f"the run {folder} was made by an earlier kdcache and does not name its teacher. "
            "Run its kdcache train command again: it trains nothing and adds it."
        )
    run_state.check_result(folder)
    there = folder / "result.json"
    result = run_dir.read_json(there) if there.is_file() else None
    if result is not None:
        seal.check_all(folder, *run_dir.LOGS)
    found: dict[str, Any] = {
        "kind": "run",
        "name": str(folder),
        "state": run_state.of(folder),
        "why": run_state.why(folder),
        "config": config,
        "result": result,
        "epochs": history.read(folder / "log.jsonl"),
        "steps": history.read(folder / "steps.jsonl"),
        "measured": None,
        "left_out": "",
    }
    if views == 0:
        return found | {"left_out": "Its predictions are left out (--views 0)."}
    confusions = Confusions()
    request = EvalRequest(views=views)
    try:
        measured = evaluate.measure(str(folder), request, options, confusions)
    except (KdcacheError, OSError) as error:
        log.info("%s: %s", folder, error)
        return found | {"left_out": f"Its predictions are left out: {error}"}
    cached = measured["cache"]["path"] if measured["cache"] else ""
    of_class = confusion.names_of(config, (), int(config["teacher"]["num_classes"]))
    answers = []
    for place in dict.fromkeys(place for (place, _), pairs in confusions.pairs.items() if pairs):
        network = [name for where, name in confusions.pairs if where == place][-1]  # of two the EMA
        pairs, due = confusions.pairs[place, network], "teacher" if place == cached else "label"
        answers.append({"on": place, "due": due, "network": network, **classes(pairs, of_class)})
    return found | {"measured": measured, "answers": answers}


def classes(pairs: Pairs, names: Names) -> dict[str, Any]:
    """Predictions by class: how often the due one was given, and which others instead."""
    total: Counter[int] = Counter()
    for (due, _), times in pairs.items():
        total[due] += times
    agreement: list[dict[str, Any]] = [
        {
            "class": number,
            "name": names(number),
            "pictures": times,
            "agreement": 100 * pairs[number, number] / times,
        }
        for number, times in sorted(total.items())
    ]
    worst = sorted(agreement, key=lambda one: (one["agreement"], one["class"]))
    used = sorted({number for pair in pairs for number in pair})
    found: dict[str, Any] = {
        "pictures": total.total(),
        "agreement": 100 * sum(pairs[n, n] for n in total) / max(total.total(), 1),
        "classes": len(total),
        "shares": [one["agreement"] for one in worst],
        "worst": worst[:_WORST],
        "confusions": confusion.most_frequent(pairs, names, _PAIRS),
    }
    if len(used) <= MATRIX:
        found["matrix"] = {
            "names": [names(number) for number in used],
            "counts": [[pairs[a, b] for b in used] for a in used],
        }
    return found
