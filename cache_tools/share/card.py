"""`kdcache card`: a dataset card for the Hub, from a cache and the terms of its authors.

Everything that is a fact of the cache is read from it; licences and terms are given, since a cache
does not contain them. The licence of a published teacher comes from the entry point `license` in
`kdcache.teachers`.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cache_tools.errors import CacheIncomplete, UsageError
from cache_tools.runtime.plugins import Plugin
from cache_tools.runtime.secrets import redact
from cache_tools.runtime.text import counted, printable
from cache_tools.share import markdown
from cache_tools.spec import class_names
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.version import __version__

LICENSE: Plugin[Callable[[str], str]] = Plugin("kdcache.teachers", "license", "name licences")
TAGS = ("knowledge-distillation", "teacher-logits", "soft-labels", "zarr", "kdcache")
_SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}


@dataclass(frozen=True)
class Terms:
    """Terms of publication, which a cache does not contain."""

    license: str = ""
    """Licence by its name on the Hub; "": unknown."""
    teacher_license: str = ""
    """That of the teacher's weights; "" looks it up."""
    data: str = ""
    """Name of the data set."""
    data_terms: str = ""
    """Its licence or terms, or their address."""
    citation: str = ""
    """Citation of the cache."""
    url: str = "URL"
    """Repository or URL of the published cache."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.\-]*", self.license):
            raise UsageError(
                f"--license {self.license!r} is no name of a licence on the Hub, such as cc-by-4.0 "
                "or other."
            )


def text(store: Cache, terms: Terms) -> str:
    """Write the card: Markdown with YAML in front."""
    facts, spec = info.info(store), store.spec
    if not facts["targets"]:
        raise CacheIncomplete(f"{store.name} has no part yet: there is nothing to describe.")
    return _CARD.format(
        yaml=_yaml(facts, terms),
        title=markdown.text(_title(facts, terms)),
        about=_about(facts, spec),
        facts=_table(_facts(facts, spec, terms)),
        views=_table(_on(spec.views)) if spec.replayable else _UNKNOWN,
        targets=_table(_on(spec.targets)),
        fidelity=_fidelity(facts, spec.targets),
        url=redact(printable(terms.url)),
        folder="cache.zarr",
        reader=READER.format(path="cache.zarr"),
        fingerprint=facts["fingerprint"],
        content_id=facts["content_id"],
        citation=terms.citation or _citation(facts, _title(facts, terms)),
        version=__version__,
    )


READER = """import numpy as np, zarr

cache = zarr.open_group("{path}", mode="r")
spec = cache.attrs["kdcache"]["spec"]
view, row = 0, 0
block = row // spec["block_size"]
counts = cache["targets/count"][view, block * spec["block_size"] : row + 1].astype(int)
end = block * spec["block_size"] * spec["targets"]["k_max"] + counts.sum()
index = np.cumsum(cache["targets/index_delta"][view, end - counts[-1] : end], dtype=int) - 1
p = (cache["targets/code"][view, end - counts[-1] : end] / spec["targets"]["levels"]) ** 4
code = int(cache["targets/tail"][0, view, row])
tail = 1 / (1 + np.exp(11 - 18 * (code - 1) / 253)) if code else 0.0  # mass of all other classes
p *= (1 - tail) / p.sum()
key = bytes(cache["samples/key"][:]).decode().split("\\n")[row]
print(key, dict(zip(index.tolist(), p.round(4).tolist())), "others", round(float(tail), 4))"""

_UNKNOWN = "The views of these targets are unknown: they were imported without their parameters."

_CITATION = """```bibtex
@misc{{kdcache-{short},
  title = {{{title}}},
  note = {{kdcache fingerprint {fingerprint}, content id {content_id}}}
}}
```"""

_CARD = """---
{yaml}---

<!-- kdcache card -->
# {title}

{about}

## What it is

{facts}

### Views

A view is a fixed draw of the augmentation: sample key, view number and seed decide every pixel.

{views}

### Targets

{targets}

{fidelity}

## How to use it

With kdcache {version} or later, all of it or a part (`pip install 'kdcache[remote]'`):

```sh
kdcache pull {url} {folder} --views 0:10
kdcache verify {folder} --data YOUR-COPY-OF-THE-IMAGES
kdcache train RECIPE --cache {folder} --data YOUR-COPY-OF-THE-IMAGES --out run
```

Images are joined by key, in whatever shards or folders; renamed ones by their digest.

Without it, with zarr and numpy (a folder, once downloaded):

```python
{reader}
```

## Identity

* fingerprint `{fingerprint}`: data set, teacher, views and targets
* content id `{content_id}`: the bytes of all targets, as
  `kdcache verify {folder} --content-id ID` compares it

## Citation

{citation}
"""


def _yaml(facts: dict[str, Any], terms: Terms) -> str:
    from huggingface_hub import DatasetCardData

    size = next((name for most, name in _SIZES.items() if facts["samples"] < most), "1B<n<10B")
    data = DatasetCardData(
        license=terms.license or "unknown",
        annotations_creators=["machine-generated"],
        task_categories=["image-classification"],
        size_categories=[size],
        tags=list(TAGS),
        pretty_name=_title(facts, terms),
    )
    return str(data.to_yaml()) + "\n"


def _title(facts: dict[str, Any], terms: Terms) -> str:
    of = terms.data or counted(facts["samples"], "image")
    return printable(f"Soft targets of {facts['teacher']['name']} on {of}")


def _citation(facts: dict[str, Any], title: str) -> str:
    short = facts["fingerprint"].partition(":")[2][:12]
    ids = {name: facts[name] for name in ("fingerprint", "content_id")}
    return _CITATION.format(short=short, title=title, **ids)


def _about(facts: dict[str, Any], spec: CacheSpec) -> str:
    targets = (
        f"Soft targets of {markdown.code(facts['teacher']['name'])} on {facts['views']} augmented "
        f"views of each of {facts['samples']:,} images: the most probable of {facts['classes']:,} "
        "classes, their probabilities, and the mass of all others. It contains no image."
    )
    replay = " A student trains on the same pixels as the teacher's input, without the teacher."
    return targets + replay * spec.replayable


def _facts(facts: dict[str, Any], spec: CacheSpec, terms: Terms) -> dict[str, Any]:
    """Rows of the first table."""
    known = spec.teacher.members or (spec.teacher,)
    licences = {one.name: terms.teacher_license or _license_of(one.name) for one in known}
    done, total = facts["parts"]["done"], facts["parts"]["total"]
    classes = class_names.of_cache(spec)
    named = f": {markdown.text(class_names.summary(classes))}" if classes else ""
    weights = ", ".join(markdown.code(one.weights_sha256) for one in known)
    networks = (f"{markdown.code(n.name)} ({markdown.text(n.architecture)})" for n in known)
    rows = {
        "teacher": ", ".join(networks),
        "its weights, SHA-256": weights,
        "its licence": ", ".join(markdown.text(v or "unknown") for v in licences.values()),
        "data set": f"{markdown.text(terms.data or 'see the keys')}, {facts['samples']:,} images "
        f"(none included), table {markdown.code(spec.dataset.table_sha256)}",
        "its terms": markdown.text(terms.data_terms or "unknown: those of the data set apply"),
        "classes": f"{facts['classes']:,}{named}",
        "views of an image": f"{facts['views']}",
        "parts": f"{done} of {total}",
        "size": f"{facts['bytes']:,} bytes, {facts['bytes_per_view']} per view",
        "format": f"kdcache {facts['format']} (Zarr v3)",
        "licence": terms.license or "unknown",
    }
    top1 = facts["teacher"]["top1_on_views"]
    return rows | ({} if top1 is None else {"teacher's top-1 on these views": f"{top1:.2f} %"})


def _fidelity(facts: dict[str, Any], targets: TargetSpec) -> str:
    """Describe the fidelity of the targets to the teacher."""
    kept, tail = facts["kept_classes_mean"], facts["tail_mass_mean"]
    k, levels = targets.k_max, targets.levels
    bound = 2 * k**0.5 / levels**2 + k / levels**4 + 0.002
    rounding = (
        f"Rounding adds at most {bound:.4f} nat to the KL divergence from the teacher at T = 1 "
        "(FORMAT.md, section 4.4)."
    )
    if kept is None or tail is None:  # a commit record need not have statistics
        return rounding
    return (
        f"On average {kept:.4g} classes of a view are kept, {100 * (1 - tail):.2f} % of its "
        f"probability. {rounding}"
    )


def _license_of(teacher: str) -> str:
    """Return the licence of a published network, "" if unknown."""
    find = LICENSE.find()
    return find(teacher) if find is not None else ""


def _on(spec: ViewSpec | TargetSpec) -> dict[str, Any]:
    """Fields of a spec by name, but for those that are off."""
    on = {n: v for n, v in asdict(spec).items() if v not in (0, "", (0.0,) * 4)}
    return {n: ", ".join(map(str, v)) if isinstance(v, tuple) else v for n, v in on.items()}


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
