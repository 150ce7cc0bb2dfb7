"""The rows that contenders train on, and models with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from pl_prefopt.types import PLAIN, PreferenceBatch, TokenTree

Settings = dict[str, Any]
LENGTHS = Path(__file__).with_name("lengths.json")


class RandomRows:
    """Rows of random tokens with given lengths.

    Args:
        sizes: each row's prompt length and response lengths.
        vocabulary: the number of token ids.
    """

    def __init__(self, sizes: Sequence[tuple[int, list[int]]], vocabulary: int) -> None:
        self.sizes, self.vocabulary = sizes, vocabulary
        self.lengths = [prompt + sum(responses) for prompt, responses in sizes]

    def __len__(self) -> int:
        return len(self.sizes)

    def batch(self, numbers: Sequence[int]) -> PreferenceBatch:
        """Return rows by their numbers; a row has the same tokens in every batch and process."""
        prompts, answers = [], []
        most = max(len(self.sizes[number][1]) for number in numbers)
        for number in numbers:
            random = torch.Generator().manual_seed(number)
            prompt, responses = self.sizes[number]
            ids = torch.randint(5, self.vocabulary, (prompt + sum(responses),), generator=random)
            prompts.append(ids[:prompt])
            answers += ids[prompt:].split(responses)
            answers += [ids[:0]] * (most - len(responses))
        prompt_ids, prompt_mask = _padded(prompts)
        response_ids, response_mask = (part.unflatten(0, (-1, most)) for part in _padded(answers))
        tree = TokenTree(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=response_mask,
            counted_mask=response_mask,
        )
        present = response_mask.any(dim=2)
        scores = torch.arange(most).expand(present.shape).float()
        return PreferenceBatch(
            index=torch.tensor(numbers),
            split="train",
            rows=(),
            present=present,
            scores=scores.masked_fill(~present, torch.nan),
            graded=torch.zeros(len(numbers), dtype=torch.bool),
            trees={PLAIN: tree},
        )


def _padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return pad_sequence(list(rows), batch_first=True), pad_sequence(masks, batch_first=True)


def total_steps(settings: Settings) -> int:
    """Return the number of steps, those that are not measured included."""
    total: int = settings["warmup"] + settings["steps"]
    return total


def prepare(settings: Settings, folder: str, module: Any = None) -> Any:
    """Return the rows, with the views that ``module`` wants.

    ``data`` is a file of preferences, ``{prompt_words, response_words, responses}`` for texts of one size, or
    for random tokens ``{prompt_tokens, response_tokens, responses}`` or ``{lengths}``, a key of lengths.json.
    """
    data, count = settings["data"], total_steps(settings) * settings["batch_size"]
    if isinstance(data, str) or "prompt_words" in data:
        return _texts(settings, count, folder, module)
    if "lengths" in data:
        known = json.loads(LENGTHS.read_text(encoding="utf-8"))[data["lengths"]]
        limits = settings["max_prompt_length"], settings["max_response_length"]
        sizes = [(min(p, limits[0]), [min(r, limits[1]) for r in rest]) for p, *rest in known]
        sizes = [sizes[number % len(sizes)] for number in range(count)]
    else:
        sizes = [(data["prompt_tokens"], [data["response_tokens"]] * data["responses"])] * count
    return RandomRows(sizes, settings["shape"]["vocab_size"])


def _texts(settings: Settings, count: int, folder: str, module: Any) -> Any:
    from pl_prefopt.data import PreferenceDataModule

    data = settings["data"]
    if isinstance(data, dict):
        data = _write_rows(Path(folder) / "rows.jsonl", count=count, **data)
    datamodule = PreferenceDataModule(
        data,
        tokenizer=settings["model"],
        batch_size=settings["batch_size"],
        max_rows=count,
        max_prompt_length=settings["max_prompt_length"],
        max_response_length=settings["max_response_length"],
        on_bad_row="skip",
        cache_dir=folder,
    )
    if module is not None:
        datamodule.trainer = SimpleNamespace(lightning_module=module, state=SimpleNamespace(fn=None))
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule.datasets["train"]


def _write_rows(path: Path, *, count: int, prompt_words: int, response_words: int, responses: int) -> str:
    """Write rows of one size, to see what the size costs.

    Words are common ones, of one token each; a row's prompt begins with its number, as no other's does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answers = [" ".join([str(n), *["word"] * (response_words - 1)]) for n in range(responses)]
            prompt = " ".join([str(number), *["word"] * (prompt_words - 1)])
            row = {"prompt": prompt, "responses": answers, "scores": list(range(responses))}
            file.write(json.dumps(row) + "\n")
    return str(path)


def batches(dataset: Any, settings: Settings) -> Iterator[range]:
    """Yield the row numbers of each step, in the data's order, for every contender alike."""
    size = settings["batch_size"]
    for start in range(0, total_steps(settings) * size, size):
        yield range(start, min(start + size, len(dataset)))


def pairs_of(batch: PreferenceBatch) -> list[dict[str, list[int]]]:
    """Return a prompt's best response against each other one as TRL's columns."""
    tree = batch.trees[PLAIN]
    prompt = tree.prompt_ids[0][tree.prompt_mask[0]].tolist()
    answers = [
        ids[mask].tolist() for ids, mask in zip(tree.response_ids[0], tree.response_mask[0], strict=True)
    ]
    best = int(batch.scores[0].nan_to_num(-torch.inf).argmax())
    others = [answer for number, answer in enumerate(answers) if number != best]
    return [{"prompt_ids": prompt, "chosen_ids": answers[best], "rejected_ids": other} for other in others]


def write_outline(shape: Settings, folder: Path) -> str:
    """Write a Llama's configuration without weights, and a tokeniser that TRL wants to see."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(architectures=["LlamaForCausalLM"], bos_token_id=None, **shape)
    config.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def use_random_weights(device: str) -> None:
    """Let transformers make models with random weights on ``device``, from their configurations alone.

    All that is done with a loaded model stays as it is.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def from_config(
        name: str,
        *,
        config: Any = None,
        dtype: Any = "float32",
        attn_implementation: str | None = None,
        output_loading_info: bool = False,
        **_: Any,
    ) -> Any:
        config = config or AutoConfig.from_pretrained(name)
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype),
                attn_implementation=attn_implementation,
            )
        model.name_or_path = name
        return (model, {"missing_keys": []}) if output_loading_info else model

    AutoModelForCausalLM.from_pretrained = from_config
