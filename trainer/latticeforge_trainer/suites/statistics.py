"""Intervals for scores: what a share of n answers, or a drop on the same n problems, can mean."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean

Z_95 = NormalDist().inv_cdf(0.975)
"""Standard normal quantile of a two-sided 95 % interval, about 1.96."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    Unlike the normal interval it stays inside [0, 1] and does not collapse at 0 or n successes.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22 (1927) 209-212.

    Args:
        successes: how many of the n succeeded; a fraction where an answer earned part credit, which
            makes the interval conservative (no credit varies more than one of only 0 and 1).
        n: how many were asked.

    Raises:
        ValueError: n is not positive, or successes lie outside [0, n].
    """
    if n <= 0:
        raise ValueError(f"n is {n}, expected at least 1")
    if not 0 <= successes <= n:
        raise ValueError(f"there are {successes} successes, expected 0 to {n}")
    share = successes / n
    shrink = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / shrink
    spread = Z_95 * sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / shrink
    # At 0 and n successes one bound is the share itself; rounding would put it just outside.
    return min(max(0.0, centre - spread), share), max(min(1.0, centre + spread), share)


def paired_drop(base: Sequence[float], new: Sequence[float]) -> tuple[float, float, float]:
    """Mean drop from ``base`` to ``new`` on the same problems, with its 95 % interval.

    Both scores of a problem share its difficulty, so the interval is taken over the differences
    and is far narrower than that of two unrelated shares. The matched-pairs interval is adjusted
    by adding half a problem to each of the four cells (right or wrong, before and after), so that
    it does not collapse when no answer changed. A. Agresti and Y. Min, "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24 (2005) 729-740.

    Args:
        base: credit per problem in [0, 1] of the model that is compared with; booleans will do.
        new: credit of this model on the same problems, in the same order.

    Returns:
        The observed mean drop (positive: ``new`` is worse), and its lower and upper bound.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(base) != len(new) or not base:
        raise ValueError(f"got {len(base)} and {len(new)} answers, expected as many and at least 1")
    drops = [float(before) - float(after) for before, after in zip(base, new, strict=True)]
    # Four half problems add 2 to n, nothing to the sum, and 2 · ½ · 1² to the sum of squares.
    n = len(drops) + 2
    mean = sum(drops) / n
    variance = (sum(drop**2 for drop in drops) + 1) / n - mean**2
    spread = Z_95 * sqrt(variance / n)
    return fmean(drops), max(-1.0, mean - spread), min(1.0, mean + spread)


def macro_f1(true: Sequence[str], answered: Sequence[str], labels: Sequence[str]) -> float:
    """The unweighted mean over ``labels`` of F1 = 2·TP / (2·TP + FP + FN).

    A label that is neither true nor answered anywhere has no F1 and does not count.

    Args:
        true: the right label of each problem.
        answered: the label that was answered; what is not in ``labels`` is a miss.
        labels: the classes.
    """
    pairs = list(zip(true, answered, strict=True))
    f1 = []
    for label in labels:
        hits = sum(t == a == label for t, a in pairs)
        misses = sum((t == label) != (a == label) for t, a in pairs)
        if hits or misses:
            f1.append(2 * hits / (2 * hits + misses))
    return fmean(f1) if f1 else 0.0
