"""An undisturbed run, and inputs of the digits with a small validation split."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.stage1 import KDCACHE
from tests.helpers.training import FAST
from train.data.inputs import Inputs, open_inputs


@pytest.fixture(scope="session")
def finished(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, made by the command itself."""
    out = tmp_path_factory.mktemp("run") / "run"
    command = [
        KDCACHE,
        "train",
        "digits",
        "--cache",
        str(digits_cache),
        "--out",
        str(out),
        *FAST,
    ]
    subprocess.run(command, check=True)
    return out


@pytest.fixture(scope="session")
def inputs(digits_cache: Path) -> Inputs:
    whole = open_inputs(digits_cache, None)
    assert whole.validation is not None
    return replace(whole, validation=whole.validation.subset(np.arange(64)))
