"""The scorer, with which the policy and every reference compute log-probs of responses."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pl_prefopt.attention import TREE_VARLEN, wanted
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.fast_layers import FastLayers
from pl_prefopt.scoring.gradients import is_trained
from pl_prefopt.scoring.heads import ChunkedHead, FusedHead, Head, SplitHead, WholeLogits
from pl_prefopt.scoring.inputs import accepts, base_model, computed_in, longest_row
from pl_prefopt.scoring.layouts import Layout, PlainLayout, SingleLayout, TreeLayout, read_laid_out
from pl_prefopt.scoring.lengths import GroupedLayout, thresholds
from pl_prefopt.scoring.masks import FORMS, FULL, SLIDING, layer_kinds, mask_kinds
from pl_prefopt.scoring.prefix_cache import PrefixCache, can_reuse
from pl_prefopt.scoring.probe import Probe, probing
from pl_prefopt.scoring.readouts import LogProbs, Readout, Vocabulary
from pl_prefopt.scoring.routers import check_has_routers, recorded_routers, router_loss
from pl_prefopt.scoring.ways import BY_KERNELS, attending, presumed, unsuited, ways_of
from pl_prefopt.types import ResponseLogProbs, TokenTree

LayoutName = Literal["auto", "tree", "plain"]
"""How prompts and responses are laid out in the model's input, see ``Scorer``."""
HeadName = Literal["chunked", "fused"]
"""How hidden states become log-probs, see ``Scorer``."""
Running = Callable[[], AbstractContextManager[object]]


_HEADS: dict[HeadName, Callable[[], SplitHead]] = {"chunked": ChunkedHead, "fused": FusedHead}


class Scorer:
    """Computes log-probs of responses with one model.

    The first call probes, on a few tokens, how the model can be run: every way is compared with single
    forward passes of unpadded rows.

    Args:
        layout: ``tree`` computes each prompt once for all its responses, on prefix trees; ``plain`` has one
            row per response; ``auto`` uses prefix trees where they give the model's own log-probs.
        head: ``chunked`` computes the logits of a chunk of positions at a time; ``fused`` uses a GPU kernel
            of the package cut-cross-entropy. Where a probe finds other log-probs, the model's own head is
            run.

    Raises:
        ConfigError: if ``head`` is ``fused`` and the package is missing; on the first call, if the model is
            not a causal language model, or ``layout`` is ``tree`` and gives other log-probs.
    """

    def __init__(self, layout: LayoutName = "auto", head: HeadName = "chunked") -> None:
        if head == "fused" and importlib.util.find_spec("cut_cross_entropy") is None:
            raise ConfigError(
                "model.head is 'fused', but the package cut-cross-entropy is not installed: "
                "pip install 'pl-prefopt[fused]', or set model.head to 'chunked'."
            )
        self.layout, self.head = layout, head
        self._split_head = _HEADS[head]
        self._dtype: torch.dtype | None = None
        self._plain: PlainLayout | SingleLayout = PlainLayout()
        self._shared: TreeLayout | None = None
        self._grouped: GroupedLayout | None = None
        self._head: Head | None = None
        self._remembers: bool | None = None

    @property
    def attention(self) -> str | None:
        """The attention on prefix trees, once it is decided; ``None`` with one row per response."""
        return None if self._shared is None else self._shared.attention

    def __call__(
        self, model: nn.Module, tree: TokenTree, prefix_cache: PrefixCache | None = None
    ) -> ResponseLogProbs:
        """Return the log-probs of each response of ``tree``, float32 [B, R], with gradient if enabled.

        Args:
            model: the policy or a reference.
            tree: B prompts and their responses.
            prefix_cache: from ``Scorer.prefix_cache``. A first pass over the rows' plain trees fills it;
                later passes of the same model read the first ``tree.shared_with_plain`` tokens of each
                prompt from it.
        """
        (log_probs,) = self.read(model, tree, [LogProbs()], prefix_cache)
        return summed(log_probs, tree)

    def read(
        self,
        model: nn.Module,
        tree: TokenTree,
        readouts: Sequence[Readout],
        prefix_cache: PrefixCache | None = None,
    ) -> list[Tensor]:
        """Run ``model`` on ``tree`` and return what each readout gives, see ``Layout.read``."""
        check_length(model, tree)
        head = self._head_for(model, tree.prompt_ids.device)
        if self._shared is None or prefix_cache is None:
            return (self._grouped or self._shared or self._plain).read(model, tree, head, readouts)
        return self._shared.read(model, tree, head, readouts, prefix_cache)

    def read_balanced(
        self,
        model: nn.Module,
        tree: TokenTree,
        readouts: Sequence[Readout],
        prefix_cache: PrefixCache | None = None,
        *,
        counted: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Do as ``read`` in the first pass over ``tree``, and return the load-balancing loss as well.

        It is that of one row per response, whatever the layout: a prompt's tokens count once for each of its
        responses, and padding doesn't count.

        Args:
            model: the policy.
            tree: B prompts and their responses.
            readouts: see ``Layout.read``.
            prefix_cache: as for ``read``.
            counted: bool [B], false for rows that only even out the ranks; if all are, the loss is theirs.

        Raises:
            ConfigError: if the model's rows are scored in several passes, or it has no such loss.
        """
        check_length(model, tree)
        check_has_routers(model)
        head = self._head_for(model, tree.prompt_ids.device)
        if self._grouped is not None or isinstance(self._plain, SingleLayout):
            raise ConfigError(
                f"{type(base_model(model)).__name__} scores a batch in several passes, of which its "
                "load-balancing loss is no sum: remove model.init_args.router_aux_loss_coef."
            )
        if self._shared is None:
            laid = self._plain.lay_out(tree)
        else:
            laid = self._shared.lay_out(model, tree, prefix_cache)
        with recorded_routers(model) as logits:
            values = read_laid_out(model, tree, head, readouts, laid)
        # A mean over no tokens would be NaN, even where its weight is 0.
        return values, router_loss(model, logits, laid.counts(tree, counted | ~counted.any()))

    def vocabulary(self, model: nn.Module, states: Tensor, running: Running) -> Vocabulary:
        """Return a reference's distributions over the vocabulary, from its hidden states.

        Args:
            model: the reference.
            states: [B, R, T, D], from the readout ``HiddenStates``.
            running: returns a context in which a model shared with the policy is the reference.
        """
        assert self._head is not None, "`read` comes first"
        layer = self._head.layer(model)
        return Vocabulary(states=states, layer=layer, running=running if layer.adapted else nullcontext)

    def prefix_cache(self, model: nn.Module, device: torch.device) -> PrefixCache | None:
        """Return an empty prefix cache, or ``None`` where later passes can't reuse keys and values.

        They can't with one row per response, with dropout, with gradient checkpointing, where rows are scored
        in groups by length, and where a probe finds that a pass from cached keys and values gives other
        log-probs.
        """
        head = self._head_for(model, device)
        if self._shared is None or self._grouped is not None or not can_reuse(model):
            return None
        if self._remembers is None:
            with FastLayers(model).off(), probing(model, device) as probe:
                continued = _Continued(self._shared)
                obstacle = probe.obstacle(continued, head, "keys and values of an earlier pass")
            self._remembers = obstacle is None
            if obstacle:
                warnings.warn(f"A second view is computed from its start, because {obstacle}.", stacklevel=3)
        return PrefixCache() if self._remembers else None

    def presume(self, model: nn.Module, device: torch.device) -> None:
        """Choose layout and head without a probe, for fake tensors: as if all log-probs agreed.

        A fused head is taken for the chunked one, which needs more memory.

        Args:
            model: the policy or a reference.
            device: where it would be.
        """
        self._head, self._remembers = ChunkedHead(), True
        found = ways_of(model, device)
        if self.layout == "tree" or (self.layout == "auto" and _obstacle(model, found) is None):
            way = presumed(model, device)
            with attending(model, way) as keep:
                keep()
            self._shared = TreeLayout(mask_kinds(_text_config(model))[0], way)
        self._group(model)

    def another(self) -> Scorer:
        """Return a scorer with the same settings for another model, which is probed by itself."""
        return Scorer(self.layout, self.head)

    def _head_for(self, model: nn.Module, device: torch.device) -> Head:
        """Return the head, once it is decided for the precision that the model computes in here."""
        if self._head is not None and self._dtype in (None, computed_in(model, device)):
            return self._head
        self._plain, self._shared, self._grouped, self._remembers = PlainLayout(), None, None, None
        if TREE_VARLEN in (found := ways_of(model, device)) and len(found) > 1:
            self._dtype = computed_in(model, device)  # of which the kernel can't do all
        return self._decide(model, device)

    def _decide(self, model: nn.Module, device: torch.device) -> Head:
        # Also in a pass of validation: the way that is found is that of training.
        gradients = self._has_kernels(model, device) and is_trained(model)
        with (
            torch.inference_mode(False),
            FastLayers(model).off() as fast,
            probing(model, device, gradients=gradients) as probe,
        ):
            head = self._decide_rows(probe)
            obstacles = self._decide_tree(probe, head, device) if self.layout != "plain" else []
            if fast.methods:
                with fast.on():
                    self._check_fast(probe, head)
        if self._shared is not None:
            others = "".join(f"; {obstacle}" for obstacle in obstacles)
            rank_zero_info(
                f"{type(base_model(model)).__name__} is run on prefix trees, each prompt once for all its "
                f"responses, with the attention {self._shared.attention}: a probe found the log-probs of "
                f"single rows, up to {probe.tolerance:.1g}{others}."
            )
        elif obstacles and self.layout == "tree":
            raise ConfigError(f"model.layout is 'tree', but {obstacles[0]}: set model.layout to 'auto'.")
        elif obstacles:
            warnings.warn(f"Each prompt is computed once per response, because {obstacles[0]}.", stacklevel=4)
        self._group(model)
        self._head = head  # last, so that an error is raised again by the next call
        return head

    def _has_kernels(self, model: nn.Module, device: torch.device) -> bool:
        """Tell whether anything but torch's own operations may compute gradients."""
        if self.head == "fused" or FastLayers(model).methods:
            return True
        found = ways_of(model, device)
        return self.layout != "plain" and bool(BY_KERNELS.intersection(found)) and not _obstacle(model, found)

    def _check_fast(self, probe: Probe, head: Head) -> None:
        """Raise a ``ConfigError`` if kernels or compiled layers change the model's log-probs or gradients."""
        what = "the settings kernels and compile"
        obstacle = probe.obstacle(self._shared or self._plain, head, what, by_kernels=True)
        if obstacle is not None:
            raise ConfigError(f"{obstacle}: set policy.kernels: null and policy.compile: null.")

    def _decide_rows(self, probe: Probe) -> Head:
        """Choose how one row per response is scored."""
        heads: tuple[Head, Head] = (self._split_head(), WholeLogits())
        fused = self.head == "fused"
        obstacle = probe.obstacle(self._plain, heads[0], "its head run by itself", by_kernels=fused)
        if obstacle is None:
            return heads[0]
        padded = probe.obstacle(self._plain, heads[1], "rows of several lengths together")
        if padded is None:
            warnings.warn(f"All logits of a batch are in memory at once, because {obstacle}.", stacklevel=5)
            return heads[1]
        if isinstance(probe.model, FSDPModule):
            raise ConfigError(
                f"{padded}, so that it can only score one row at a time, which sharded weights don't allow: "
                "use another model, or trainer.strategy ddp."
            )
        self._plain = SingleLayout()
        warnings.warn(f"Responses are scored one at a time, which is slow, because {padded}.", stacklevel=5)
        return (
            heads[0] if probe.obstacle(self._plain, heads[0], "its head run by itself") is None else heads[1]
        )

    def _decide_tree(self, probe: Probe, head: Head, device: torch.device) -> list[str]:
        """Choose the first attention and masks that give the model's own log-probs; return all obstacles."""
        model = probe.model
        if isinstance(self._plain, SingleLayout):
            return [f"{type(base_model(model)).__name__} scores one row at a time"]
        found = ways_of(model, device)
        obstacle = _obstacle(model, found) or probe.own_limit()
        if obstacle:
            return [obstacle]
        obstacles = []
        for way in found:
            obstacle = unsuited(model, way) or self._try(probe, head, way)
            if obstacle is None:
                break
            obstacles.append(obstacle)
        return obstacles

    def _try(self, probe: Probe, head: Head, way: str) -> str | None:
        """Choose the first masks with which an attention gives the model's own log-probs."""
        with attending(probe.model, way) as keep:
            obstacle = self._try_masks(probe, head, way)
            if obstacle is None:
                keep()
        return obstacle

    def _try_masks(self, probe: Probe, head: Head, way: str) -> str | None:
        if way != wanted(base_model(probe.model)).loaded and not probe.change() <= probe.tolerance:
            name = type(base_model(probe.model)).__name__
            return f"{name} gives different log-probs of single rows with {way}"
        what = f"a row of segments ({way})" if way == TREE_VARLEN else f"a tree-shaped mask ({way})"
        obstacles = []
        for kind in mask_kinds(_text_config(probe.model)) if way in FORMS else ("full",):
            layout = TreeLayout(kind, way)
            obstacles.append(probe.obstacle(layout, head, what, by_kernels=way in BY_KERNELS))
            if obstacles[-1] is None:
                self._shared = layout
                return None
        return obstacles[0]

    def _group(self, model: nn.Module) -> None:
        limits = thresholds(_text_config(model))
        self._grouped = GroupedLayout(self._shared or self._plain, limits) if limits else None


class _Continued(Layout):
    """A pass that reads all prompt tokens but the last from the prefix cache of another pass."""

    def __init__(self, layout: TreeLayout) -> None:
        self._layout = layout

    def read(
        self, model: nn.Module, tree: TokenTree, head: Head, readouts: Sequence[Readout]
    ) -> list[Tensor]:
        layout, prefix_cache = self._layout, PrefixCache()
        layout.read(model, tree, head, readouts, prefix_cache)
        shared = tuple(length - 1 for length in tree.prompt_lengths)
        return layout.read(
            model, dataclasses.replace(tree, shared_with_plain=shared), head, readouts, prefix_cache
        )


def summed(log_probs: Tensor, tree: TokenTree) -> ResponseLogProbs:
    """Sum the log-probs [B, R, T] over the tokens that count."""
    counted = tree.counted_mask
    return ResponseLogProbs(
        sum=log_probs.masked_fill(~counted, 0.0).sum(dim=-1),
        length=counted.sum(dim=-1),
    )


def unknown_log_probs(tree: TokenTree) -> ResponseLogProbs:
    """Return the lengths of responses with NaN for their log-probs."""
    length = tree.counted_mask.sum(dim=-1)
    return ResponseLogProbs(sum=torch.full(length.shape, torch.nan, device=length.device), length=length)


def check_length(model: nn.Module, tree: TokenTree) -> None:
    """Refuse a prompt and a response that together exceed the model's context length.

    Raises:
        DataError: naming both lengths and the limit.
    """
    limit = longest_row(model)
    # Checking shapes is free, but the longest prompt and response may be of different rows.
    if limit is None or tree.prompt_ids.shape[1] + tree.response_ids.shape[2] <= limit:
        return
    prompts, responses = tree.prompt_mask.sum(dim=1), tree.response_mask.sum(dim=2).amax(dim=1)
    longest = int((prompts + responses).argmax())
    prompt, response = int(prompts[longest]), int(responses[longest])
    if prompt + response > limit:
        raise DataError(
            f"{type(base_model(model)).__name__} takes at most {limit} tokens, but a row has a prompt of "
            f"{prompt} and a response of {response} of its tokens: set data.max_prompt_length and "
            f"data.max_response_length so that they add up to less."
        )


def _obstacle(model: nn.Module, found: Sequence[str]) -> str | None:
    name = type(base_model(model)).__name__
    if not {TREE_VARLEN, *FORMS}.intersection(found):
        return f"attn_implementation '{found[0]}' doesn't take a custom mask ({', '.join(FORMS)} do)"
    unknown = layer_kinds(_text_config(model)) - {FULL, SLIDING}
    if unknown:
        return f"{name} has layers of the kind {min(unknown)}"
    if not accepts(model, "position_ids"):
        return f"{name} takes no position_ids"
    return None


def _text_config(model: nn.Module) -> Any:
    return base_model(model).config.get_text_config()
