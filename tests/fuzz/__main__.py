"""Feed every reader with other damaged files for a time: `make fuzz`, an hour unless FUZZ_SECONDS.

What is found is printed, and its files are kept in build/fuzz; once mended they go to the corpus.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.readers import READERS

_ROUND = 10
"""Examples between two looks at the clock."""


def fuzz(name: str, seconds: float) -> tuple[int, str]:
    """Read damaged files for some seconds; the examples tried, and a failure or ""."""
    end, tried = time.monotonic() + seconds, 0

    @settings(
        max_examples=_ROUND,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def some(draw: st.DataObject) -> None:
        nonlocal tried
        tried += 1
        harness.example(name, draw)

    while time.monotonic() < end:
        try:
            some()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            last = harness.KEPT / name / harness.LAST
            kept = last.with_name(str(time.time_ns()))
            if last.exists():
                last.rename(kept)
            return tried, f"{traceback.format_exc(limit=-4)}  kept in {kept}"
    return tried, ""


def main() -> int:
    """Go through the readers; 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of all readers together")
    parser.add_argument("readers", nargs="*", choices=[[], *READERS], default=[])
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.CRITICAL)
    names, failed = options.readers or list(READERS), False
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDCACHE_CACHE"] = folder
        for name in names:
            tried, failure = fuzz(name, options.seconds / len(names))
            print(f"{name}: {tried} examples, {failure or 'nothing found'}", flush=True)
            failed |= bool(failure)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
