"""Metrics in the order in which people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

METRIC_GROUPS: dict[str, tuple[str, ...]] = {
    "pairs": ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "accuracy_v", "margin_v"),
    "agreement with scores": ("pearson", "spearman", "kendall"),
    "lists": ("best_of_n", "ndcg", "kendall_within"),
    "the policy's own ranking": ("ranking_accuracy", "ranking_accuracy_normalized"),
    "likelihood": (
        "chosen_logp",
        "rejected_logp",
        "likelihood_best",
        "likelihood_rank_2",
        "likelihood_rank_3",
        "likelihood_rank_4",
        "likelihood_gap",
        "length_bias",
    ),
    "references": ("kl_k", "marginal_k"),
}
"""Names as in ``METRIC_HELP``, without the intervals, and the loss."""

OTHER = "of the objective"
"""The group of what no name above fits: numbers that an objective reports of itself."""


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort metrics, named without their stage, into ``METRIC_GROUPS`` and ``OTHER``; leave out empty groups.

    >>> grouped(["kl_1", "kl_0", "margin_quality", "alpha_0", "accuracy"])
    {'pairs': ['accuracy', 'margin_quality'], 'references': ['kl_0', 'kl_1'], 'of the objective': ['alpha_0']}
    """
    places = {name: _place(name) for name in names}
    ordered = sorted(places, key=lambda name: (*places[name], name))
    groups = [*METRIC_GROUPS, OTHER]
    sorted_in = {title: [n for n in ordered if places[n][0] == g] for g, title in enumerate(groups)}
    return {title: members for title, members in sorted_in.items() if members}


def _place(name: str) -> tuple[int, int]:
    """Return the number of the group and the place in it, exact names before patterns."""
    for matches in (lambda known: known == name, lambda known: re.fullmatch(_pattern(known), name)):
        for group, members in enumerate(METRIC_GROUPS.values()):
            for place, known in enumerate(members):
                if matches(known):
                    return group, place
    return len(METRIC_GROUPS), 0


def _pattern(known: str) -> str:
    """Return what a name of ``METRIC_HELP`` stands for: k is a reference's number, v a view's name."""
    return re.sub("_v$", r"_\\w+", re.sub("_k$", r"_\\d+", known))
