"""Load the packages beside this one, whatever a user's own files are called.

A script named train.py, or a pipeline.py beside it, comes first on sys.path and would be imported
in place of ours. So ours are loaded by their path and registered before anybody asks for them.
"""

import importlib.util
import sys
from pathlib import Path

_NAMES = ("cache_tools", "pipeline", "train")


def load() -> None:
    """Import `cache_tools`, `pipeline` and `train` from the folder of this package.

    Raises:
        ImportError: Another module of one of these names was imported before.
    """
    home = Path(__file__).resolve().parent.parent
    for name in _NAMES:
        own = home / name / "__init__.py"
        if (there := sys.modules.get(name)) is not None:
            found = getattr(there, "__file__", None)
            if found is None or Path(found).resolve() != own:
                raise ImportError(
                    f"kdcache needs its own package {name!r}, but {found or there!r} was imported "
                    "under that name before. Import kdcache first, or rename that file."
                )
            continue
        spec = importlib.util.spec_from_file_location(
            name, own, submodule_search_locations=[str(own.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


load()
