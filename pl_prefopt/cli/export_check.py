"""The check that an exported model equals the policy: both score the same tokens, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.data import Renderer
from pl_prefopt.data.formats import to_row
from pl_prefopt.data.renderer import TEMPLATE_NAMES
from pl_prefopt.data.sources import Source, open_source
from pl_prefopt.errors import PrefOptError
from pl_prefopt.policies import PolicySpec
from pl_prefopt.scoring.inputs import label_log_probs

_ROWS = 3
_TOKENS = 48
_ROUNDED, _COPIED = 3.0, 0.5
"""The largest accepted ratio of the difference between two scorings to the effect of rounding every weight.

In 200 correct exports of tiny models and three of SmolLM2-135M, the measured ratio was 0.3 to 1.8 where
weights were recomputed, merged or converted to another type, and 0 where they were copied.
"""


@dataclass(frozen=True)
class Gap:
    """The difference between an exported model and the policy.

    Attributes:
        most: the largest difference between log-probs of a token.
        mean: the root mean square of all differences.
        rounding: the same for the exported model and itself with every weight rounded once more.
    """

    most: float
    mean: float
    rounding: float

    def is_rounding(self, *, copied: bool) -> bool:
        """Return whether rounding explains the difference; for ``copied`` weights almost none is expected."""
        return self.mean <= (_COPIED if copied else _ROUNDED) * self.rounding


Score = Callable[[nn.Module, list[list[int]]], Tensor]


def trial_rows(spec: PolicySpec, data: Mapping[str, Any]) -> list[list[int]]:
    """Return a few rows of tokens: over the whole vocabulary, and from the run's data if it is in files.

    Args:
        spec: the policy.
        data: the run's settings of its data.
    """
    vocabulary = spec.vocabulary_size()
    length = min(_TOKENS, spec.context_length() or _TOKENS)
    generator = torch.Generator().manual_seed(0)
    scattered = torch.randint(vocabulary, (_ROWS, length), generator=generator).tolist()
    # Data that was moved or needs other settings must not prevent an export.
    with suppress(PrefOptError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return [*scattered, *(row[:length] for row in _rows_of(spec, data))]
    return scattered


def score(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Return the log-probs of each row's tokens after the first, float64 [N], by the model's own forward."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        scores = [_score_row(model, torch.tensor([row])) for row in rows]
    model.train(training)
    return torch.cat(scores).double()


def compare(
    model: nn.Module, rows: list[list[int]], expected: Tensor, unit: float, score: Score = score
) -> Gap:
    """Compare a model's scores with those of the policy.

    Args:
        model: the exported model; its weights are modified.
        rows: rows of tokens.
        expected: the policy's scores of them.
        unit: the largest machine epsilon of any dtype that either model computes in.
        score: gives a model's scores of rows.
    """
    found = score(model, rows)
    difference = found - expected
    mean = _root_mean_square(difference)
    if mean == 0:
        return Gap(0.0, 0.0, 0.0)
    _round_once_more(model, unit)
    return Gap(difference.abs().max().item(), mean, _root_mean_square(score(model, rows) - found))


def unit_of(model: nn.Module, spec: PolicySpec) -> float:
    """Return the machine epsilon of the coarsest dtype that a model computes in."""
    types = {weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point}
    if spec.four_bit is not None:
        types.add(getattr(torch, spec.four_bit.compute))
    return max(torch.finfo(dtype).eps for dtype in types)


def _score_row(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return label_log_probs(logits[0, :-1], ids[0, 1:])


def _root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _round_once_more(model: nn.Module, unit: float) -> None:
    """Perturb every weight by up to the distance to the next representable number."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dtype.is_floating_point:
                moved = torch.rand(weight.shape, generator=generator).mul_(2).sub_(1).mul_(unit).add_(1)
                weight.copy_(moved.mul_(weight))


def _rows_of(spec: PolicySpec, data: Mapping[str, Any]) -> Iterator[list[int]]:
    described = data["train"]
    source = Source(**described) if isinstance(described, Mapping) else Source.of(described)
    if not Path(source.path).is_file():
        return
    # Any rows will do, so that the run's template file need not be there any more.
    template = data["template"] if data["template"] in TEMPLATE_NAMES else "auto"
    renderer = Renderer(spec.load_tokenizer(), template=template)
    for record in islice(open_source(source, Path()).records(), _ROWS):
        row = renderer.encode(to_row(record.fields))
        yield [*row.prompt_ids[-_TOKENS // 2 :], *row.response_ids[0]]
