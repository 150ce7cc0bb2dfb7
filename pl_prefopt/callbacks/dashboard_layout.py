"""Which curves belong on one plot."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from pl_prefopt.callbacks.publishing import Layout, publish_layout

BOTH = "(train|val)"

LAYOUT: Layout = {
    "Preference": {
        "chosen against rejected reward, training": ["train/(chosen|rejected)_reward$"],
        "chosen against rejected reward, validation": ["val/(chosen|rejected)_reward$"],
        "margin": [f"{BOTH}/margin$"],
        "accuracy": [f"{BOTH}/accuracy$"],
        "loss": [f"{BOTH}/loss$"],
        "accuracy of the policy's own ranking": ["val/ranking_accuracy(_normalized)?$"],
    },
    "Agreement with scores": {
        "correlations of margin and score": ["val/(pearson|spearman|kendall)$"],
        "order within a prompt": ["val/(best_of_n|ndcg|kendall_within)$"],
    },
    "References": {
        "distance from each reference": [r"val/kl_\d+$"],
        "log-ratio margin to each reference": [r"val/marginal_\d+$"],
        "weight of each reference (MRPO)": [rf"{BOTH}/alpha_\d+$"],
        "clipping and disagreement (MRPO)": [f"{BOTH}/(epsilon|clip_rate|reference_disagreement)$"],
        "accuracy on second views": [f"{BOTH}/accuracy_(?!low|high)"],
    },
    "Likelihood": {
        "chosen against rejected log-prob, training": ["train/(chosen|rejected)_logp$"],
        "chosen against rejected log-prob, validation": ["val/(chosen|rejected)_logp$"],
        "likelihood by rank": [r"val/likelihood_(best|rank_\d)$"],
        "length bias": ["val/length_bias$"],
    },
    "Run": {
        "tokens a second": ["train/tokens_per_second$"],
        "learning rate": ["lr-"],
    },
}
"""Patterns are regular expressions, matched from a name's beginning."""


class DashboardLayout(Callback):
    """Gives TensorBoard its Custom Scalars page: what is to be compared is on one plot.

    Other dashboards arrange curves by name, and get nothing from this.

    Args:
        layout: category → chart → patterns of the curves; ``LAYOUT`` by default.
    """

    def __init__(self, layout: dict[str, dict[str, list[str]]] | None = None) -> None:
        self.layout: Layout = layout or LAYOUT

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout once."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                publish_layout(logger, self.layout)
