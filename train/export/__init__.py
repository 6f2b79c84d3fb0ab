"""Export of finished students to timm and the Hub: safetensors, configuration, model card.

In: a run. Out: a folder that `timm.create_model` opens. Imports `run_dir` and `cache_tools.share`.
"""
