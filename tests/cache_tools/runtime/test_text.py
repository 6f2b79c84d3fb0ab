"""Messages with values of strangers: a screen at most, and no code of a terminal."""

import logging

import pytest

from cache_tools.cli import guard, main
from cache_tools.runtime import text


def test_what_a_terminal_acts_upon_is_shown() -> None:
    assert text.message("a\x1b[31mb\x07\r\u202ec\udcff\nd") == (
        r"a\x1b[31mb\x07\r\u202ec\udcff" + "\nd"
    )
    assert text.message("Größe 224×224, 写真 …") == "Größe 224×224, 写真 …"


def test_one_is_a_singular() -> None:
    parts = [text.counted(number, "part") for number in (0, 1, 2, 10_000)]
    assert parts == ["0 parts", "1 part", "2 parts", "10,000 parts"]
    assert [text.counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
    assert text.counted(3, "batch") == "3 batches"
    assert text.counted(3, "epoch") == "3 epochs"
    for noun in ("part", "class", "batch", "epoch", "image", "byte"):
        assert text.singular(text.counted(2, noun)) == f"2 {noun}"
    assert text.singular("MB") == "MB"


def test_a_message_is_a_screen_at_most() -> None:
    long = text.message("begin " + "x" * 14_000_000 + " end")
    assert len(long) < 2_100
    assert long.startswith("begin x") and long.endswith("x end")
    assert "more characters" in long
    lines = text.message("\n".join(map(str, range(1_000)))).split("\n")
    assert (len(lines), lines[0], lines[10], lines[-1]) == (20, "0", "… 981 more lines …", "999")


def test_errors_and_logs_go_through_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("kdcache")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(logger, "handlers", [])
    main._set_up_logging(logging.INFO)
    logger.info("read %s", "\x1b[2J" + "y" * 5_000)
    guard.say("\x1b[2J" + "z" * 5_000)
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert printed.count("\\x1b[2J") == 2
    assert len(printed) < 4_300


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a b\N{NO-BREAK SPACE}% 漢字 ♥ é", "a b\N{NO-BREAK SPACE}% 漢字 ♥ é"),
        ("\N{ZERO WIDTH NON-JOINER}می", "\N{ZERO WIDTH NON-JOINER}می"),
        ("two\nlines\tof", "two lines of"),
        ("\x1b[31m\x00\x85\u2028\u202egnp\udcff", "�[31m����gnp�"),
    ],
)
def test_what_is_not_for_the_eye_is_marked(raw: str, shown: str) -> None:
    assert text.printable(raw) == shown
    assert text.printable_json({raw: [raw, 1.5, None]}) == {shown: [shown, 1.5, None]}
