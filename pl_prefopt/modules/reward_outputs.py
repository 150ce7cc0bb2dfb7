"""The outputs of a reward head, from hidden states and columns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ContractError
from pl_prefopt.heads import Head
from pl_prefopt.scoring import EndStates, Readout, Scorer
from pl_prefopt.types import Column, TokenTree


def reward_outputs(
    head: Head, present: Tensor, last: Tensor, prompt: Tensor | None, columns: Mapping[str, Column]
) -> Tensor:
    """Return a head's outputs, [B, R, J] in float32 or better, 0 where a response is absent.

    Args:
        head: the head.
        present: bool [B, R].
        last: [B, R, H], the hidden states at the responses' last tokens.
        prompt: [B, H], those at the prompts' last tokens, if the head reads them.
        columns: the batch's columns, those of the head among them.
    """
    rows, responses = present.shape
    dtype = next((weight.dtype for weight in head.parameters()), last.dtype)
    flat = last.flatten(0, 1).to(dtype)
    of_prompt = flat[:, :0] if prompt is None else prompt.to(dtype).repeat_interleave(responses, dim=0)
    values = {name: _of_responses(head, name, columns[name], responses, last.device) for name in head.columns}
    with torch.autocast(last.device.type, enabled=False):
        outputs: Tensor = head(flat, of_prompt, values)
    if outputs.shape != (rows * responses, head.outputs):
        raise ContractError(
            f"{type(head).__name__} gave outputs of the shape {list(outputs.shape)}, expected "
            f"{[rows * responses, head.outputs]}: correct its `outputs` or its `forward`."
        )
    return outputs.view(rows, responses, -1).masked_fill(~present.unsqueeze(-1), 0.0)


def read_outputs(
    scorer: Scorer, policy: nn.Module, head: Head, tree: TokenTree, columns: Mapping[str, Column]
) -> Tensor:
    """Return a head's outputs for the responses of a tree, [B, R, J], see ``reward_outputs``.

    Args:
        scorer: runs the policy.
        policy: the model under the head.
        head: the head.
        tree: prompts and responses, on the policy's device.
        columns: the rows' columns, those of the head among them.
    """
    readouts: list[Readout] = [EndStates("response")]
    if head.reads_prompt:
        readouts.append(EndStates("prompt"))
    last, *prompt = scorer.read(policy, tree, readouts)
    present = tree.response_mask.any(dim=-1)
    return reward_outputs(head, present, last, prompt[0] if prompt else None, columns)


def _of_responses(head: Head, name: str, values: Column, responses: int, device: torch.device) -> Tensor:
    """Return a column's value for each response, [B · R]."""
    if isinstance(values, Tensor):
        return values.repeat_interleave(responses, dim=0) if values.dim() == 1 else values.flatten(0, 1)
    flat: list[str | None] = []
    for value in values:
        flat += value if isinstance(value, tuple) else [value] * responses
    return head.encode(name, flat).to(device)
