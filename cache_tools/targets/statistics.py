"""Statistics of a part, as its commit record has them.

Every writer of parts (stage 1, imports, mixtures, selections) computes them here, so that they can
be compared: classes kept and tail mass follow from the stored targets; the teacher's confidence and
accuracy only from the probabilities, which the caller sums up batch by batch.

Shapes: B views, K slots.
"""

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import DataError
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets

_ENOUGH = 200
"""Labelled samples from which the agreement of a teacher with labels is tested."""


def check_agreement(hits: float, count: int, chance: float, where: str, cause: str) -> None:
    """Raise DataError if a teacher agrees with labels no more often than by chance.

    That is at most four standard deviations above chance; of fewer than 200 samples nothing is
    concluded. A network trained on these classes is far above.

    Args:
        hits: Samples whose most probable class is (one of) their labels.
        count: Samples with labels.
        chance: Probability of a hit by chance: labels of a sample / number of classes.
        where: What was compared, for the message.
        cause: Likely cause and next step.
    """
    expected = chance * count
    if count >= _ENOUGH and hits <= expected + 4.0 * (expected * (1.0 - chance)) ** 0.5:
        raise DataError(
            f"{where}: the teacher agrees with {100.0 * hits / count:.2f} % of the labels, no more "
            f"than by chance ({100.0 * chance:.2f} %). {cause}"
        )


def most_probable(
    index_BK: NDArray[np.signedinteger], probability_BK: NDArray[np.floating]
) -> tuple[NDArray[np.int64], float]:
    """Most probable class of each view, [B], and the sum of their probabilities."""
    slot_B1 = probability_BK.argmax(axis=1)[:, None]
    class_B = np.take_along_axis(index_BK, slot_B1, axis=1)[:, 0].astype(np.int64)
    return class_B, float(probability_BK.max(axis=1).sum(dtype=np.float64))


def part_statistics(
    stored: EncodedTargets, top_sum: float | None = None, correct: float | None = None
) -> dict[str, float]:
    """Statistics for the commit record of a part, to six decimals.

    Args:
        stored: Targets of all its views.
        top_sum: Sum of the highest probability of each view; None when it is not computed.
        correct: Number of views whose most probable class is their label; None where views have no
            label or two.
    """
    count, tail_B = len(stored), codec.tail_levels()[stored.tail_TB[0]]
    statistics = {
        "kept_classes": len(stored.code_E) / count,
        "tail_mass": float(tail_B.mean(dtype=np.float64)),
    }
    if top_sum is not None:
        statistics["max_probability"] = top_sum / count
    if correct is not None:
        statistics["teacher_top1"] = 100.0 * correct / count
    return {name: round(value, 6) for name, value in statistics.items()}
