"""Soft targets of a batch, decoded from the stored targets of an epoch's views.

Targets of an epoch stay in RAM as the caches store them, a few bytes a view; decoding a batch when
it is made costs less than keeping decoded targets. Several caches are mixed here, so that nothing
after it depends on their number.

Shapes: B views of a batch.
"""

import numpy as np

from cache_tools.numerics.array_types import I8
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.targets import codec
from cache_tools.targets.codec import DecodedTargets
from cache_tools.targets.mixture import Tail
from train.data.prefetch import View


class StoredTargets:
    """Targets of one cache, or the mixture of several."""

    def __init__(self, members: CacheEnsemble, tail: Tail = "uniform") -> None:
        """Decode targets of `members`.

        `tail` is the probability that a mixture gives to classes which a member did not keep.
        """
        self.members = members
        """The caches."""
        self._mixture = members.mixture(tail) if len(members.caches) > 1 else None

    def decode(self, loaded: list[View], slot_B: I8, row_B: I8, partner_B: I8) -> DecodedTargets:
        """Decode the targets of a batch.

        Args:
            loaded: Views of the epoch.
            slot_B: Index into `loaded` of each view of the batch.
            row_B: Row of the sample table of each view.
            partner_B: Row of its partner.
        """
        if self._mixture is None:
            return self._targets(loaded, slot_B, row_B)
        each = [self._targets(loaded, slot_B, row_B, i) for i in range(len(self.members.caches))]
        label_N = self.members.reference.table.label_N
        label_BP = np.stack([label_N[row_B], label_N[partner_B]], axis=1).astype(np.int64)
        return self._mixture(each, label_BP[:, : self.members.num_labels])

    def _targets(
        self, loaded: list[View], slot_B: I8, row_B: I8, member: int = 0
    ) -> DecodedTargets:
        """Targets of one cache for the views of a batch, in their order."""
        spec = self.members.caches[member].spec.targets
        stored = [view.stored[member] for view in loaded]
        if len(loaded) == 1:
            return codec.decode(stored[0], spec, loaded[0].at(row_B))
        groups = [np.flatnonzero(slot_B == slot) for slot in range(len(loaded))]
        parts = [
            codec.decode(own, spec, view.at(row_B[group]))
            for own, view, group in zip(stored, loaded, groups, strict=True)
        ]
        return codec.gather(parts, groups)
