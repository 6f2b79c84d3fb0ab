"""Lines of the log in any process: text of strangers is shown, secrets are not."""

import io
import logging

import pytest

from cache_tools.runtime import logs
from cache_tools.runtime.text import message


@pytest.fixture
def stream(own_log: None) -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(logging.StreamHandler(stream), logging.WARNING)
    return stream


def test_a_line_has_no_secret_and_no_escape_code(stream: io.StringIO) -> None:
    logs.log.info("below the level")
    logs.log.warning("%s is read again", "https://me:s3cr3t@host/a\x1b[31m.tar?sig=s3cr3t")
    assert stream.getvalue() == "https://host/a\\x1b[31m.tar is read again\n"


def test_a_secret_that_is_cut_in_half_is_removed_before(stream: io.StringIO) -> None:
    url = f"https://host/{'a' * 990}?sig={'s3cr3t' * 500}"
    assert "s3cr3t" in message(url)[-900:]
    logs.log.warning("%s", url)
    assert "s3cr3t" not in stream.getvalue()
