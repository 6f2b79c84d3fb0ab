"""New caches from old ones: select, merge, ensemble, diff.

In: opened caches (`store`). Out: caches whose targets and views are those of their sources.
Imports `data`, `store` and what lies below; each operation hands parts to `assemble`.
"""
