"""What is a secret of a text, and what is none."""

import pytest

from cache_tools.runtime.secrets import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read http://u:p@h:80/a/b: gone", "cannot read http://h:80/a/b: gone"),
        ("at https://u:p@ss@h/a?sig=x%2F&t=1#f.", "at https://h/a."),
        ("URL('https://h/a?token=x')", "URL('https://h/a')"),
        ("simplecache::s3://k:s@bucket/x", "simplecache::s3://bucket/x"),
        ("storage options secret=abc, anon=True", "storage options secret=***, anon=True"),
        ("{'aws_secret_access_key': 'abc', 'n': 1}", "{'aws_secret_access_key': '***', 'n': 1}"),
        ("HF_TOKEN=hf_abc", "HF_TOKEN=***"),
        ("sent hf_abcdefghijklmnopqrstuvwx", "sent ***"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: ***"),
        ("the variable has hunter2hunter2", "the variable has ***"),
    ],
)
def test_secrets_are_removed(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "hunter2hunter2")
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "is it http:// and not https://?",
        "hf://datasets/user/name@main/folder",
        "hf auth login, or HF_TOKEN), and export again",
        "teacher@v2.tar, what? C#, a token: that of the Hub",
        "s3://bucket/folder/{0..9}.tar",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text
