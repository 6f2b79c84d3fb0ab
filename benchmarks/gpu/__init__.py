"""Everything that a GPU is needed for, in one command of at most nine minutes.

    python -m benchmarks.gpu [--minutes 9] [--pictures FOLDER] [--batch 256] [--only WORD]
    python -m benchmarks.gpu --short         # tiny networks, few pictures, on the CPU: a test

Networks have random weights. Pictures are JPEGs of 500×375 made from photographs
(`benchmarks.render`), or those of a folder. Sections, in the order of `sections.FULL`:

* "CUDA tests": `pytest -m gpu` as a process of its own; how many tests pass, fail, are skipped.
* "teacher …": the bare network on a resident batch, and stage 1 on A2's views as a share of it
  (`benchmarks.stage1`): bf16, the memory format that stage 1 chooses, compiled or not.
* "student …": labels, cached and online with the most renderer threads, cached with fewer as well;
  the limit of cached over online, data wait, and the parts of a step (`benchmarks.replay`).
* "targets": caches of one teacher made on the CPU in fp32 and on the device in each precision: KL
  and agreement of the most probable class (`kdcache diff`).
* "regions": the loader alone (from its fourth batch on) and a cached student, with and without
  region decoding.
* "cohort": four students at once beside one (`benchmarks.sweep`).

Contestants of a section take turns, each round from another one on; figures are medians and ranges
over the rounds, ratios are taken within a round. Sections share the minutes: rounds begin while
another one fits, and what a section does not use goes to those after it. A section for which too
little is left, one that runs past the end, and one that fails are in the result, with the reason.
The sections are measured in a process that is ended at the last minute, and replaced after a
failure: an error of CUDA would be met by every later section.
"""
