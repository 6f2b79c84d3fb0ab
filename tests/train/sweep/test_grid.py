"""Grids: combinations and lists, the names of their students, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.errors import RecipeError
from tests.helpers.sweeps import SMALL
from train.sweep import grid


def names(path: Path, *overrides: str) -> list[str]:
    return [student.name for student in grid.load(str(path), overrides)]


def test_a_grid_is_every_combination_and_a_list_is_itself(
    written: Callable[[str], Path],
) -> None:
    assert names(written(SMALL)) == [
        "test_efficientnet,temperature=1",
        "test_efficientnet,temperature=4",
        "test_resnet,temperature=1",
        "test_resnet,temperature=4",
    ]
    listed = written(
        'base = "digits"\n[grid]\nseed = [0, 1]\n[[runs]]\nname = "bold"\nlr = 1e-2\n'
        '[[runs]]\nlr = 1e-4\nloss = "dkd"\ninit = "hf-hub:a/b"\n'
    )
    students = grid.load(str(listed), ["epochs=3"])
    assert [student.name for student in students] == [
        "bold,seed=0",
        "bold,seed=1",
        "lr=0.0001,loss=dkd,init=hf-hub-a-b,seed=0",
        "lr=0.0001,loss=dkd,init=hf-hub-a-b,seed=1",
    ]
    assert [(s.recipe.lr, s.recipe.seed, s.recipe.epochs) for s in students][:2] == [
        (1e-2, 0, 3),
        (1e-2, 1, 3),
    ]
    assert grid.swept(students) == ["lr", "seed", "loss", "init"]


def test_arguments_of_a_table_are_swept(written: Callable[[str], Path]) -> None:
    text = (
        'base = "digits"\nopt_kwargs.eps = 1e-6\n'
        "[grid]\nopt_kwargs.betas = [[0.9, 0.95], [0.9, 0.999]]\n"
        '[[runs]]\nname = "a"\n[[runs]]\nname = "b"\nstudent_kwargs = {drop_rate = 0.1}\n'
    )
    students = grid.load(str(written(text)))
    assert [student.name for student in students] == [
        f"{run},opt_kwargs.betas={betas}" for run in "ab" for betas in ("0.9-0.95", "0.9-0.999")
    ]
    assert students[3].recipe.opt_kwargs == {"eps": 1e-6, "betas": [0.9, 0.999]}
    assert students[3].recipe.student_kwargs == {"drop_rate": 0.1}
    assert grid.swept(students) == ["opt_kwargs.betas", "student_kwargs"]
    assert grid.plain(students[3].recipe.value("student_kwargs")) == "drop_rate=0.1"
    tables = 'base = "digits"\n[grid]\nopt_kwargs = [{eps = 1e-8}, {eps = 1e-6}]\n'
    assert names(written(tables)) == ["opt_kwargs=eps=1e-08", "opt_kwargs=eps=1e-06"]


def test_the_grid_that_comes_with_it() -> None:
    students = grid.load("digits")
    assert len(students) == 12
    assert len({student.recipe.stream for student in students}) == 1  # one cohort


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid]\ntemprature = [1.0]", ["unknown key 'temprature'", "Did you mean 'temperature'"]),
        ("epoch = 3\n[grid]\nlr = [1.0]", ["unknown key 'epoch'", "Did you mean 'epochs'"]),
        ("[[runs]]\nlearning = 1", ["unknown key 'learning'"]),
        ("[grdi]\nlr = [1.0]", ["unknown key 'grdi'", "Did you mean 'grid'"]),
        ("[grid]\noptkwargs.eps = [1e-8]", ["unknown key 'optkwargs.eps'"]),
        ("[grid]\nlr.eps = [1e-8]", ["lr: expected float"]),
        ("[grid]\nlr = 1e-3", ["the grid's lr is a list of at least one value, found 0.001"]),
        ("[grid]\nlr = []", ["the grid's lr is a list of at least one value, found []"]),
        ("[grid]", ["nothing is swept"]),
        ("", ["nothing is swept"]),
        ("[grid]\nlr = [-1.0]", ["lr must be above 0"]),
        ("[grid]\nloss = ['kl']", ["'kl' is not one of"]),
        ("[grid]\ntemperature = [1, 1.0]", ["2 students are named 'temperature=1'"]),
        ("[[runs]]\nname = 'a'\n[[runs]]\nname = 'a'", ["2 students are named 'a'"]),
        ("[[runs]]\nname = '..'", ["is no name for a student"]),
        ("runs = 3", ["students are listed as [[runs]]"]),
    ],
)
def test_a_grid_that_cannot_be(written: Callable[[str], Path], text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        grid.load(str(written(f'base = "digits"\n{text}' if "base" not in text else text)))
    for word in words:
        assert word in str(error.value)
