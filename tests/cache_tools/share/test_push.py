"""Putting a cache where others read it: never half of it, never another's, with its card."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
import yaml

from cache_tools.share import card, hub, push
from cache_tools.storage import fsspec_client
from cache_tools.storage.folder import Folder
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.verify import verify
from tests.helpers import bucket, lab
from tests.helpers.bucket import Bucket
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def source_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 views of 60 samples in 2 blocks."""
    return lab.build(tmp_path_factory.mktemp("push") / "c.zarr", lab.keys(60), range(2)).path


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True) if files.ls("/") else None


def content(cache: Path) -> dict[str, bytes]:
    found = (p for p in cache.rglob("*") if p.is_file() and p.name != push.CARD)
    return {str(p.relative_to(cache)): p.read_bytes() for p in found}


def test_what_is_pushed_can_be_pulled(
    source_cache: Path, memory: Any, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("push", source_cache, "memory://lab/c.zarr", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["parts"] == {"there": 0, "sent": 4}
    assert "# Soft targets of sage" in memory.cat("/lab/c.zarr/README.md").decode()
    assert kdcache("pull", "memory://lab/c.zarr", tmp_path / "c.zarr").code == 0
    assert content(tmp_path / "c.zarr") == content(source_cache)
    assert kdcache("verify", "memory://lab/c.zarr").code == 0
    again = kdcache("push", source_cache, "memory://lab/c.zarr", "--json")
    assert json.loads(again.out)["parts"] == {"there": 4, "sent": 0}


def test_the_manifest_comes_last_and_a_killed_push_goes_on(
    source_cache: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, order = f"file://{tmp_path}/there", []
    write = Folder.write

    def dying(folder: Folder, name: str, data: bytes) -> None:
        order.append(name)
        if len(order) == 20:
            raise KeyboardInterrupt
        write(folder, name, data)

    monkeypatch.setattr(Folder, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        push.run(Cache.open(source_cache), url, None, jobs=1)
    assert not (tmp_path / "there/zarr.json").exists()
    sent = push.run(Cache.open(source_cache), url, None, jobs=1)
    assert (sent.there, sent.sent) == (2, 2)
    assert order[-1] == "zarr.json"
    assert content(tmp_path / "there") == content(source_cache)


def test_more_views_are_added_and_another_part_is_refused(
    source_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    url = f"file://{tmp_path}/there"
    known = lab.keys(60)
    one = lab.build(tmp_path / "one.zarr", known, range(1))
    assert kdcache("push", one.path, url).code == 0
    assert json.loads(kdcache("push", source_cache, url, "--json").out)["parts"] == {
        "there": 2,
        "sent": 2,
    }
    assert Cache.open(url).num_views == 2
    assert content(tmp_path / "there") == content(source_cache)
    assert kdcache("push", one.path, url).code == 0  # fewer views take none away
    assert content(tmp_path / "there") == content(source_cache)
    (one.path / Part(0, 1).record).unlink()
    lab.write(one, Part(0, 1), shift=0.1)
    said = kdcache("push", one.path, url)
    assert (said.code, "view 0, block 1 of" in said.err) == (1, True)
    other = lab.build(tmp_path / "other.zarr", known[:30], range(1))
    said = kdcache("push", other.path, url)
    assert (said.code, "has another cache" in said.err) == (1, True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/c.zarr", "Pass --license"),
        ("hf://datasets/me/c", "Pass --license"),
        ("folder/c.zarr", "is no URL. As a folder of this machine it is file:///"),
        ("https://host/c.zarr", "can be read and not written"),
        ("hf://me/c", "no data set on the Hub"),
    ],
)
def test_where_it_cannot_go_is_explained(
    url: str, message: str, source_cache: Path, kdcache: Command
) -> None:
    license_ = () if "license" in message or "folder" in message else ("--license", "other")
    said = kdcache("push", source_cache, url, *license_)
    assert (said.code, message in said.err) == (2, True), said.err


def test_a_readme_of_other_origin_stays(
    source_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/README.md").write_text("mine")
    assert kdcache("push", source_cache, f"file://{tmp_path}/there").code == 0
    assert (tmp_path / "there/README.md").read_text() == "mine"


class FakeHub:
    """What `hub` asks of huggingface_hub, into a folder of fsspec's memory."""

    commits: list[dict[str, bytes]]

    def create_repo(self, repo: str, repo_type: str, exist_ok: bool) -> None:
        assert (repo, repo_type, exist_ok) == ("me/soft", "dataset", True)

    def create_commit(self, repo: str, operations: list[Any], **how: Any) -> None:
        assert how["repo_type"] == "dataset"
        files = {one.path_in_repo: one.path_or_fileobj for one in operations}
        FakeHub.commits.append(files)
        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"/{name}", data)


def test_the_hub_gets_few_commits_the_manifest_after_the_parts(
    source_cache: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeHub.commits = []
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(hub, "MOST_FILES", 10)
    remote = fsspec_client.FsspecClient
    to_memory = {
        "hf://datasets/me/soft/c.zarr": "memory://c.zarr",
        "hf://datasets/me/soft": "memory://",
    }
    monkeypatch.setattr(fsspec_client, "FsspecClient", lambda url: remote(to_memory[url]))
    store = Cache.open(source_cache)
    push.run(store, "hf://datasets/me/soft/c.zarr", card.text(store, card.Terms("other")).encode())
    parts, described = FakeHub.commits[:2], FakeHub.commits[2:-1]
    assert all("/c/" in name or "commits/v" in name for files in parts for name in files)
    assert not any("commits/v" in name for files in described for name in files)
    assert {*FakeHub.commits[-1]} == {"c.zarr/zarr.json", "README.md"}
    memory.get("/c.zarr", str(tmp_path / "c.zarr"), recursive=True)
    assert content(tmp_path / "c.zarr") == content(source_cache)
    assert push.run(store, "hf://datasets/me/soft/c.zarr", None).sent == 0
    assert FakeHub.commits[2:-1] == described


def test_the_card_has_the_facts_and_how_to_read(
    source_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache(
        "card", source_cache, "--license", "cc-by-4.0", "--data-name", "Photos", "--url", "hf://x"
    )
    assert said.code == 0, said.err
    _, front, body = said.out.split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["license"], data["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert data["task_categories"] == ["image-classification"]
    store = Cache.open(source_cache)
    for fact in (store.spec.fingerprint, store.content_id(), "`sha256:0`", "Photos", "60 images"):
        assert fact in body
    assert "kdcache pull hf://x" in body
    assert "licence | unknown" in body  # nobody knows the sage's
    cell = body.split("```python\n")[1].split("```")[0].replace("cache.zarr", str(source_cache))
    found: dict[str, Any] = {}
    exec(cell, found)
    ours = codec.decode(store.read(Part(0, 0))[0], store.spec.targets)
    count = len(found["index"])
    assert found["index"].tolist() == ours.index_BK[0][:count].tolist()
    assert abs(found["p"] - ours.probability_BK[0][:count]).max() < 1e-6
    out = tmp_path / "README.md"
    assert kdcache("card", source_cache, "--out", out).code == 0
    assert "license: unknown" in out.read_text()
    assert kdcache("card", source_cache, "--license", "no licence").code == 2


def test_timms_licences_are_known(source_cache: Path) -> None:
    assert card._license_of("resnet50.a1_in1k") == "apache-2.0"
    assert card._license_of("sage") == ""


def test_a_content_id_can_be_signed_and_compared(
    source_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    """As the guide to sharing has it, with OpenSSH; skipped where there is none."""
    said = kdcache("info", source_cache, "--content-id")
    name = said.out.strip()
    assert name == Cache.open(source_cache).content_id()
    assert kdcache("verify", source_cache, "--content-id", name).code == 0
    wrong = kdcache("verify", source_cache, "--content-id", "sha256:0")
    assert (wrong.code, "has the content id" in wrong.out) == (1, True)
    wrong = kdcache(
        "pull", f"file://{source_cache}", tmp_path / "no.zarr", "--content-id", "sha256:0"
    )
    assert wrong.code == 1
    assert (
        kdcache("pull", f"file://{source_cache}", tmp_path / "c.zarr", "--content-id", name).code
        == 0
    )
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen here")
    key, note = tmp_path / "key", tmp_path / "content-id"
    note.write_text(said.out)
    run = {"check": True, "capture_output": True}
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], **run)
    subprocess.run(["ssh-keygen", "-Y", "sign", "-f", key, "-n", "kdcache", note], **run)
    (tmp_path / "signers").write_text(f"lab@host {(tmp_path / 'key.pub').read_text()}")
    checks = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "signers", "-I", "lab@host"]
    checks += ["-n", "kdcache", "-s", tmp_path / "content-id.sig"]
    subprocess.run(checks, input=note.read_bytes(), **run)
    done = subprocess.run(checks, input=b"sha256:0\n", capture_output=True)
    assert done.returncode != 0


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with bucket.serve() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("caches")
        yield running


@pytest.mark.slow
def test_a_bucket_that_fails_loses_only_time(
    s3: Bucket,
    source_cache: Path,
    tmp_path: Path,
    kdcache: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        fsspec_client, "TRIES", 20
    )  # by chance one thread could have all the trouble
    s3.trouble = lambda number, what: {3: "500", 5: "cut", 8: "slow"}.get(number % 11, "")
    said = kdcache("push", source_cache, "s3://caches/c.zarr", "--license", "other", "--jobs", 2)
    assert said.code == 0, said.err
    said = kdcache("pull", "s3://caches/c.zarr", tmp_path / "c.zarr", "--jobs", 2)
    assert said.code == 0, said.err
    assert content(tmp_path / "c.zarr") == content(source_cache)
    assert verify.verify(Cache.open(tmp_path / "c.zarr")).status == "ok"
