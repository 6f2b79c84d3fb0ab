"""The report in a real headless Chromium: desk and phone, light and dark."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.reports import Page, student, swept
from train import run_dir
from train.cli import report as command

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
SCREENS = {"desk": (1280, 900), "phone": (390, 844), "small phone": (320, 568)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of everything there is: a cache, two runs, a sweep."""
    tmp_path = tmp_path_factory.mktemp("report")
    out = tmp_path / "report.html"
    run = student(digits_cache, tmp_path / "runs" / "kd-seed0")
    config = json.loads((run / "config.json").read_text())
    config["class_names"] = ["a class of a rather long name that goes on and on " * 3] * 10
    other = shutil.copytree(run, tmp_path / "runs" / "labels-seed1")
    run_dir.write_json(other / "config.json", config)
    subjects = digits_cache, tmp_path / "runs", swept(tmp_path / "sweep")
    command.report([str(one) for one in subjects], out=out)
    return out


def opened(browser: Any, page: Path, screen: str, scheme: str) -> tuple[Any, list[str]]:
    """The page as it is seen, and everything that it should not have done."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    view, complaints = context.new_page(), []
    view.on("console", lambda message: complaints.append(f"console: {message.text}"))
    view.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    view.on("request", lambda request: complaints.append(f"request: {request.url[:80]}"))
    view.goto(page.as_uri())
    asked = [c for c in complaints if c.removeprefix("request: ").startswith(("data:", "file:"))]
    assert len([c for c in asked if "file:" in c]) == 1
    return view, [c for c in complaints if c not in asked]


def variation(figure: Any) -> float:
    """How much the pixels of a figure differ on the screen."""
    shot = Image.open(io.BytesIO(figure.screenshot()))
    return float(np.asarray(shot.convert("L")).std())


def test_the_page_on_all_screens(chromium: Any, report: Path) -> None:
    expected = len(Page(report.read_text()).having("svg"))
    assert expected > 20
    papers = {}
    for scheme in ("light", "dark"):
        for screen, (width, _) in SCREENS.items():
            view, complaints = opened(chromium, report, screen, scheme)
            assert complaints == []
            assert view.evaluate("document.documentElement.scrollWidth") <= width, screen
            boxes = view.evaluate(
                "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
                ".map(b => [b.width, b.height])"
            )
            assert len(boxes) == expected
            assert all(w > 200 and h > 60 for w, h in boxes), (screen, boxes)
            cut = view.evaluate(_CUT)
            assert cut == [], (screen, cut)
            papers[scheme] = view.evaluate("getComputedStyle(document.body).backgroundColor")
            view.context.close()
    assert papers["light"] != papers["dark"]


_CUT = """[...document.querySelectorAll('svg text')].filter(t => {
  const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
  return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2
    || a.bottom > b.bottom + 2;
}).map(t => t.textContent)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_and_legible(chromium: Any, report: Path, scheme: str) -> None:
    view, _ = opened(chromium, report, "desk", scheme)
    for number, figure in enumerate(view.query_selector_all("figure")):
        assert variation(figure) > 4, number
    worst = view.evaluate(_CONTRAST)
    assert worst >= 4.5  # WCAG 2, AA
    view.context.close()


_CONTRAST = """Math.min(...[...document.querySelectorAll(
    'p, td, th, dt, dd, figcaption, h4, svg text'
)].map(e => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => rgb(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = e;
  while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] === 0)) {
    behind = behind.parentElement;
  }
  const style = getComputedStyle(e);
  const ink = light(e instanceof SVGElement ? style.fill : style.color);
  const paper = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}))"""


def test_labels_for_screen_readers(chromium: Any, report: Path) -> None:
    """Every picture is an image with a name that has numbers; the headings begin with one."""
    view, _ = opened(chromium, report, "desk", "light")
    images = view.get_by_role("img").all()
    names = [image.get_attribute("aria-label") or image.get_attribute("alt") for image in images]
    assert len(names) == len(view.query_selector_all("figure"))
    assert all(name and any(c.isdigit() for c in name) for name in names)
    levels = view.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    view.context.close()


def test_scripts_do_not_run_even_when_put_in(chromium: Any, report: Path) -> None:
    """The page's own policy holds where escaping would have failed."""
    attack = "<img src=x onerror=\"document.title='no'\"><script>document.title='no'</script>"
    attacked = report.read_text().replace("<main>", f"<main>{attack}")
    open_ = attacked.replace("Content-Security-Policy", "nothing")
    titles = []
    for text in (attacked, open_):
        page = report.with_name("attacked.html")
        page.write_text(text)
        view = chromium.new_page()
        view.goto(page.as_uri())
        titles.append(view.title())
        view.close()
    assert titles[0] != "no"
    assert titles[1] == "no"  # without the policy it would have been
