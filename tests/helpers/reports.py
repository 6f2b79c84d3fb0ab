"""A short run, the files of a sweep, facts of a report, and a parser of its page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import torch

from tests.helpers.outcome import Outcome
from train import recipe as recipes
from train import run_dir
from train.data.inputs import open_inputs
from train.trainer import loop


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def student(cache: Path, out: Path) -> Path:
    recipe = recipes.load("digits", ["epochs=2", "views_per_epoch=2", "batch_size=20"])
    inputs = open_inputs(cache, None)
    run_dir.init_run(out, recipe, inputs, fresh=False)
    loop.train(recipe, inputs, out, torch.device("cpu"))
    return out


def swept(folder: Path) -> Path:
    """A sweep as `kdcache sweep` writes it, of which one student diverged."""
    folder.mkdir()
    students = [
        {
            "name": f"{name},temperature={t:g}", "state": "finished", "student": name,
            "temperature": t, "epochs": 6, "seed": 0, "parameters": parameters,
            "images_per_second": speed, "top1": top1 - 1, "top1_ema": top1, "top1_best": top1,
            "loss": 0.4, "cost_seconds": seconds, "images": 5760, "accuracy": top1,
        }
        for name, parameters, speed, seconds, t, top1 in (
            ("small", 100_000, 800.0, 20.0, 1.0, 80.0), ("small", 100_000, 800.0, 22.0, 4.0, 85.0),
            ("large", 400_000, 500.0, 30.0, 1.0, 90.0), ("large", 400_000, 500.0, 31.0, 4.0, 84.0),
            ("<b>bad", 300_000, 600.0, 25.0, 4.0, 60.0),
        )
    ]  # fmt: skip
    students.append(
        {"name": "x,temperature=9", "state": "diverged", "student": "x", "temperature": 9.0}
    )
    ledger = {
        "students": 5,
        "forwards": {"cache": 2000, "online": 28_800, "online_cohorts": 5760},
        "student_hours": 0.04,
        "imagenet": {
            "images": 1_281_167, "views": 20, "views_shown": 300,
            "forwards": {"cache": 25_623_340, "online": 384_350_100},
            "teacher_hours": {"cache": 5.76, "online": 86.4},
        },
        "teacher": {"seconds_per_view": 0.0008, "device": "cpu"},
        "hours": {"cache": 0.0404, "online": 0.0464, "online_cohorts": 0.0413},
    }  # fmt: skip
    facts = {"cache_fingerprint": "sha256:0", "swept": ["student", "temperature"]}
    (folder / "sweep.json").write_text(
        json.dumps({**facts, "students": students, "ledger": ledger})
    )
    return folder


def subjects_of(outcome: Outcome) -> list[dict]:
    """Facts of each subject, by `kdcache report --json`."""
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["subjects"]
