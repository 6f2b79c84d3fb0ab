"""The page of all recipes beside the authors' values is that of the recipes."""

import pytest

from benchmarks import recipes
from cache_tools import config
from train import recipe as training


def test_the_page_is_up_to_date_and_every_deviation_is_in_a_header() -> None:
    assert recipes.DOCUMENT.read_text(encoding="utf-8") == recipes.document()


@pytest.mark.parametrize("package", ["train", "pipeline"])
def test_every_recipe_of_a_paper_is_on_the_page(package: str) -> None:
    named = {name for name in config.names(package) if name not in ("digits", "photos")}
    assert all(recipes.authors(name)["source"] for name in named)


def test_an_undeclared_deviation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load = training.load
    monkeypatch.setattr(training, "load", lambda name: load(name, ["lr=0.3"]))
    with pytest.raises(ValueError, match=r"ml-dr\.toml: lr is 0\.3, the authors have 0\.4"):
        list(recipes.rows("train", "ml-dr"))


def test_a_header_without_the_words_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "header", lambda package, name: "Deviations: none.")
    with pytest.raises(ValueError, match=r"weight is 0\.0, the authors have 0\.01.*its header"):
        list(recipes.rows("train", "ml-dr"))
