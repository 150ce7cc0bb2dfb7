"""Folders of reward models: for `AutoModelForSequenceClassification`, and for `RewardScorer`."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import load, save
from torch import Tensor, nn

from pl_prefopt.data import Renderer
from pl_prefopt.errors import ConfigError, first_line
from pl_prefopt.heads import Head, ScalarHead
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import PreferenceRow

SETTINGS_FILE, HEAD_FILE = "reward_model.json", "reward_head.safetensors"


def describe_head(head: Head) -> str:
    """Return a head's class and settings, as JSON."""
    kind = type(head)
    settings = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": head.settings()}
    return json.dumps(settings, sort_keys=True, default=str)


def made_head(described: str, learned: Mapping[str, Any], weights: Mapping[str, Tensor], size: int) -> Head:
    """Return a head with its weights.

    Args:
        described: of ``describe_head``.
        learned: what it has learned from rows.
        weights: its state.
        size: H, the size of hidden states.

    Raises:
        ConfigError: if there is no such class, or the weights don't fit.
    """
    head = unbuilt_head(described, learned)
    try:
        head.build(size)
        head.load_state_dict(weights, assign=True)  # in their own dtype, whatever the default is
    except (AttributeError, TypeError, RuntimeError) as error:
        raise _not_made(described, error) from error
    return head


def unbuilt_head(described: str, learned: Mapping[str, Any]) -> Head:
    """Return a head without weights; the arguments are those of ``made_head``.

    Raises:
        ConfigError: if there is no such class.
    """
    settings = json.loads(described)
    module, _, name = settings["class_path"].rpartition(".")
    try:
        head = getattr(importlib.import_module(module), name)(**settings["init_args"])
    except (ImportError, AttributeError, TypeError) as error:
        raise _not_made(described, error) from error
    if not isinstance(head, Head):
        raise ConfigError(
            f"{settings['class_path']} is no reward head: name a subclass of pl_prefopt.heads.Head."
        )
    head.learned = learned
    return head


def _not_made(described: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"The reward head {json.loads(described)['class_path']} can't be made ({first_line(error)}): use the "
        "version of pl_prefopt, and the plug-ins, that it was trained with."
    )


def write_folder(folder: Path, model: Any, head: Head, tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Write a reward model.

    With a ``ScalarHead`` it is a model that ``AutoModelForSequenceClassification`` loads; its tokeniser's
    padding token is one that no response ends with, since transformers reads the last token that is no
    padding. With other heads it is the causal language model under the head. ``RewardScorer`` reads both.

    Args:
        folder: an existing folder.
        model: a plain transformers model; its embeddings may grow by one.
        head: the head.
        tokenizer: the model's; its padding token may change.
        settings: of the ``Renderer``, and the id ``end_token_id`` of the token that ends responses.
    """
    if isinstance(head, ScalarHead):
        _choose_padding(model, tokenizer, int(settings["end_token_id"]))
        classifier(model, head.score.weight, tokenizer.pad_token_id).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {name: weight.detach().contiguous() for name, weight in head.state_dict().items()}
    (folder / HEAD_FILE).write_bytes(save(weights))
    described = {"reward_head": json.loads(describe_head(head)), "learned": head.learned, **settings}
    (folder / SETTINGS_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_head_of(folder: Path, size: int) -> tuple[Head, dict[str, Any]]:
    """Return the head of a folder, and its other settings.

    Raises:
        ConfigError: if it is no folder of a reward model.
    """
    settings = read_settings(folder)
    weights = load((folder / HEAD_FILE).read_bytes())
    described, learned = json.dumps(settings.pop("reward_head")), settings.pop("learned")
    return made_head(described, learned, weights, size), settings


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in a folder of a reward model: ``reward_head``, ``learned``, and the renderer's.

    Raises:
        ConfigError: if it is no folder of a reward model.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ConfigError(
            f"Expected a folder that `prefopt export` wrote of a reward model, but {folder} has no "
            f"{SETTINGS_FILE}: name another folder."
        )
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def check_same_head(folder: Path, head: Head) -> None:
    """Refuse a folder whose head is another one, or has learned from other rows what its weights mean.

    Raises:
        ConfigError: if it differs, or ``folder`` is no folder of a reward model.
    """
    saved, own = read_settings(folder), json.loads(describe_head(head))
    if saved["reward_head"] != own or saved["learned"]:
        found = json.dumps(saved["reward_head"]) + (", which depends on its rows" if saved["learned"] else "")
        raise ConfigError(
            f"Expected the reward head in {folder} to be {json.dumps(own)}, but it is {found}: set "
            "model.init_args.reward_head to a head of that kind, or model.init_args.head_from to null."
        )


def check_same_model(folder: Path, policy: PolicySpec) -> None:
    """Refuse a policy that isn't the model under the head of a folder.

    Raises:
        ConfigError: if the weights differ.
    """
    if dataclasses.replace(policy, name=str(folder)).base_identity != policy.base_identity:
        raise ConfigError(
            f"model.init_args.head_from is a head on the model in {folder}, but policy.name is "
            f"'{policy.name}', which has other weights: set policy.name to {folder}, or "
            "model.init_args.head_from to null."
        )


def check_same_rendering(folder: Path, renderer: Renderer, rows: Sequence[PreferenceRow]) -> None:
    """Warn if a run renders rows in another way than the folder's reward model reads them.

    Args:
        folder: a folder of a reward model.
        renderer: that of the run.
        rows: some of its rows.
    """
    settings = read_settings(folder)
    saved = Renderer(
        PolicySpec(name=str(folder)).load_tokenizer(),
        template=settings.get("template", "auto"),
        arguments=settings.get("template_arguments"),
    )
    if any(saved.render(row) != renderer.render(row) for row in rows):
        template, arguments = settings.get("template", "auto"), settings.get("template_arguments")
        rank_zero_warn(
            f"The reward head in {folder} was trained on rows in another chat template than this run's, so "
            f"that it starts from states that it doesn't know: set data.template to {template} and "
            f"data.template_arguments to {json.dumps(arguments)}, or model.init_args.head_from to null."
        )


def classifier(model: Any, weight: Tensor, padding: int) -> Any:
    """Return a sequence classifier with the body of a causal language model.

    Args:
        model: the causal language model.
        weight: [1, H], of the score.
        padding: the id of the padding token.

    Raises:
        ConfigError: if transformers has no such classifier for the model.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.config)
    config.num_labels = len(weight)
    config.pad_token_id = config.get_text_config().pad_token_id = padding
    try:
        with torch.device("meta"):
            made: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise _no_classifier(model, first_line(error)) from error
    body, score = model.base_model, getattr(made, "score", None)
    if not isinstance(score, nn.Linear) or score.bias is not None or type(made.base_model) is not type(body):
        raise _no_classifier(model, "its classifier has another form")
    setattr(made, made.base_model_prefix, body)
    made.score = nn.Linear(weight.shape[1], len(weight), bias=False)
    dtype = next(body.parameters()).dtype
    made.score.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    return made.eval()


def _no_classifier(model: Any, reason: str) -> ConfigError:
    return ConfigError(
        f"transformers has no sequence classifier of {type(model).__name__} that a scalar head fits "
        f"({reason}): score rows with `prefopt predict` on the run."
    )


def _choose_padding(model: Any, tokenizer: Any, end: int) -> None:
    """Give the tokeniser a padding token that is not ``end``."""
    for token in _candidates(tokenizer):
        if token not in (None, end):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
            return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def _candidates(tokenizer: Any) -> Iterator[int | None]:
    yield tokenizer.pad_token_id
    yield tokenizer.unk_token_id
    yield tokenizer.bos_token_id
    yield from tokenizer.all_special_ids
