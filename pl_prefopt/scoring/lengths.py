"""Models that compute a row differently once it is longer than a threshold."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.scoring.heads import Head
from pl_prefopt.scoring.layouts import Layout, in_groups
from pl_prefopt.scoring.readouts import Readout
from pl_prefopt.types import TokenTree


def thresholds(config: Any) -> list[int]:
    """Return the lengths above which all of a row's rotary frequencies change (LongRoPE: Phi-3 and 4, 128k).

    transformers chooses the frequencies of a whole batch by its longest row.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limit = getattr(config, "max_position_embeddings", None)
    found = {
        int(settings["original_max_position_embeddings"])
        for settings in (rope, *rope.values())
        if isinstance(settings, Mapping) and settings.get("rope_type") == "longrope"
    }
    return sorted(length for length in found if limit is None or length < limit)


class GroupedLayout(Layout):
    """Scores only responses together that are on the same side of each threshold, prompt included.

    Args:
        layout: how each group is scored.
        thresholds: the longest lengths of each side but the last.
    """

    def __init__(self, layout: Layout, thresholds: list[int]) -> None:
        self.layout = layout
        self.thresholds = thresholds

    def read(
        self, model: nn.Module, tree: TokenTree, head: Head, readouts: Sequence[Readout]
    ) -> list[Tensor]:
        """Run ``model`` and return what each readout gives."""
        sides = [
            [bisect_left(self.thresholds, prompt + size) if size else -1 for size in sizes]
            for prompt, sizes in zip(tree.prompt_lengths, tree.response_sizes, strict=True)
        ]
        found = {side for row in sides for side in row if side >= 0}
        sharded = isinstance(model, FSDPModule)
        if len(found) < 2 and not sharded:
            return self.layout.read(model, tree, head, readouts)
        # Ranks that share a model run it equally often, whatever their rows.
        passes = range(len(self.thresholds) + 1) if sharded else sorted(found)
        groups = [[[own == side for own in row] for row in sides] for side in passes]
        return in_groups(
            tree, groups, readouts, lambda part, asked: self.layout.read(model, part, head, asked)
        )
