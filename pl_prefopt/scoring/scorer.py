"""The one path by which the policy and every reference score responses."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.scoring.heads import ChunkedHead, FusedHead, Head, SplitHead, WholeLogits
from pl_prefopt.scoring.history import History, can_leave
from pl_prefopt.scoring.inputs import accepts, base_model
from pl_prefopt.scoring.layouts import Layout, PlainLayout, TreeLayout
from pl_prefopt.scoring.masks import FORMS, FULL, SLIDING, layer_kinds
from pl_prefopt.types import ResponseLogProbs, TokenTree

LayoutName = Literal["auto", "tree", "plain"]
"""How prompts and responses are laid out in the model's input, see ``Scorer``."""
HeadName = Literal["chunked", "fused"]
"""How hidden states become log-probs, see ``Scorer``."""


_HEADS: dict[HeadName, type[SplitHead]] = {"chunked": ChunkedHead, "fused": FusedHead}


class Scorer:
    """Computes log-probs of responses with one model.

    The first call finds out, on a handful of tokens, how the model can be run.

    Args:
        layout: ``tree`` computes each prompt once for all its responses; ``plain`` once a response;
            ``auto`` takes the tree where the model supports it and a probe confirms that both agree.
        head: ``chunked`` computes logits of some positions at a time; ``fused`` asks a GPU kernel of the
            package cut-cross-entropy. Where a probe finds either to be off, the model's own head is run.

    Raises:
        ConfigError: if ``head`` is ``fused`` and the package is missing.
    """

    def __init__(self, layout: LayoutName = "auto", head: HeadName = "chunked") -> None:
        if head == "fused" and importlib.util.find_spec("cut_cross_entropy") is None:
            raise ConfigError(
                "model.head is 'fused', but the package cut-cross-entropy is not there: "
                "pip install 'pl-prefopt[fused]', or set model.head to 'chunked'."
            )
        self.layout = layout
        self._split_head = _HEADS[head]
        self._shared: TreeLayout | None = None
        self._head: Head | None = None
        self._remembers: bool | None = None

    def __call__(self, model: nn.Module, tree: TokenTree, history: History | None = None) -> ResponseLogProbs:
        """Return the log-probs of each response of ``tree``, float32 [B, R], with gradient if enabled.

        Args:
            model: the policy or a reference.
            tree: B prompts and their responses.
            history: what ``history`` returned. A first pass, over the rows' plain trees, writes it; later
                ones by the same model don't compute again what ``tree.known`` says that prompts begin with.
        """
        check_length(model, tree)
        head = self._head or self._decide(model, tree.prompt_ids.device)
        if self._shared is None:
            log_probs = PlainLayout().token_log_probs(model, tree, head)
        else:
            log_probs = self._shared.token_log_probs(model, tree, head, history)
        counted = tree.counted_mask
        return ResponseLogProbs(
            sum=log_probs.masked_fill(~counted, 0.0).sum(dim=-1),
            length=counted.sum(dim=-1),
        )

    def history(self, model: nn.Module, device: torch.device) -> History | None:
        """Return a history yet to be written, or ``None`` where a second pass computes everything again.

        That is so where layouts are plain, with dropout, with gradient checkpointing, and where a probe finds
        that the model's second pass would give other numbers.
        """
        head = self._head or self._decide(model, device)
        if self._shared is None or not can_leave(model):
            return None
        if self._remembers is None:
            tried, known = (_Continued(), head), (self._shared, head)
            obstacle = _disagreement(model, device, tried, known, "keys and values of an earlier pass")
            self._remembers = obstacle is None
            if obstacle:
                warnings.warn(f"A second view is computed from its start, because {obstacle}.", stacklevel=3)
        return History() if self._remembers else None

    def presume(self, model: nn.Module) -> None:
        """Decide without a probe, for a model without numbers: as if both ways always agreed.

        A fused head is presumed to be the chunked one, which takes more.
        """
        self._head, self._remembers = ChunkedHead(), True
        if self.layout == "tree" or (self.layout == "auto" and _obstacle(model) is None):
            self._shared = TreeLayout()

    def _decide(self, model: nn.Module, device: torch.device) -> Head:
        whole, split, plain, shared = WholeLogits(), self._split_head(), PlainLayout(), TreeLayout()
        obstacle = _disagreement(model, device, (plain, split), (plain, whole), "its head run by itself")
        self._head = whole if obstacle else split
        if obstacle:
            warnings.warn(f"All logits of a batch are held at once, because {obstacle}.", stacklevel=3)
        if self.layout == "plain":
            return self._head
        obstacle = None
        if self.layout == "auto":
            obstacle = _obstacle(model) or _disagreement(
                model, device, (shared, self._head), (plain, self._head), "a tree-shaped mask"
            )
        if obstacle:
            warnings.warn(f"Each prompt is computed once a response, because {obstacle}.", stacklevel=3)
        else:
            self._shared = shared
        return self._head


class _Continued(Layout):
    """A pass that begins with what another one left, of all prompt tokens but the last."""

    def token_log_probs(self, model: nn.Module, tree: TokenTree, head: Head) -> Tensor:
        layout, history = TreeLayout(), History()
        layout.token_log_probs(model, tree, head, history)
        known = tuple(length - 1 for length in tree.prompt_lengths)
        return layout.token_log_probs(model, dataclasses.replace(tree, known=known), head, history)


def check_length(model: nn.Module, tree: TokenTree) -> None:
    """Refuse a prompt and a response that are longer together than the model takes.

    Raises:
        DataError: naming both lengths and the limit.
    """
    config = base_model(model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    # The shapes cost nothing to look at, but the longest prompt and response may be of different rows.
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


def _obstacle(model: nn.Module) -> str | None:
    name = type(base_model(model)).__name__
    attention = getattr(base_model(model).config, "_attn_implementation", None)
    if attention not in FORMS:
        return f"attn_implementation '{attention}' takes no mask of one's own ({', '.join(FORMS)} do)"
    unknown = layer_kinds(base_model(model).config.get_text_config()) - {FULL, SLIDING}
    if unknown:
        return f"{name} has layers of the kind {min(unknown)}"
    if not accepts(model, "position_ids"):
        return f"{name} takes no position_ids"
    return None


@torch.no_grad()
def _disagreement(
    model: nn.Module,
    device: torch.device,
    tried: tuple[Layout, Head],
    known: tuple[Layout, Head],
    what: str,
) -> str | None:
    """Score a tiny tree in two ways; return what is wrong with the first if it differs from the second."""
    tree, name = _probe(model, device), type(base_model(model)).__name__
    with evaluating(model):
        try:
            found = tried[0].token_log_probs(model, tree, tried[1])
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            return f"{name} refuses {what} ({error})"
        expected = known[0].token_log_probs(model, tree, known[1])
    gap = (found - expected)[tree.response_mask].abs().max().item()
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    # In bfloat16 real models differ by up to 0.4 from kernel to kernel, and by many where a mask is ignored.
    if gap <= (1e-3 if exact else 1.0):
        return None
    return f"{name} gives other numbers with {what} (by {gap:.2g})"


def _probe(model: nn.Module, device: torch.device) -> TokenTree:
    """Return a tree of tokens from all over the vocabulary but its ends.

    There the special tokens stand, among which bfloat16 rounds a real model's log-probs by several nats.
    """
    prompt_mask = torch.tensor([[True, True, True], [True, False, False]], device=device)
    response_mask = torch.tensor(
        [[[True, True, True], [True, False, False]], [[True, True, False], [True, True, True]]], device=device
    )
    vocabulary = base_model(model).config.get_text_config().vocab_size
    scattered = torch.arange(18, device=device) * 7919
    ids = vocabulary // 8 + scattered % (vocabulary - vocabulary // 4)
    return TokenTree(
        prompt_ids=ids[:6].view(2, 3),
        prompt_mask=prompt_mask,
        response_ids=ids[6:].view(2, 2, 3),
        response_mask=response_mask,
        counted_mask=response_mask,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode (no dropout) and every part of it back into its own."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
