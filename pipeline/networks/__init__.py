"""Networks by name, of timm, torchvision, transformers and a user's own Python, for both stages.

In: a name. Out: a module that takes normalised pictures [B, 3, S, S] and returns logits [B, C],
with timm's `pretrained_cfg` and `num_classes`. Imports `cache_tools`; libraries when first used.
"""
