"""Make the demo's preference data: sample answers from SmolLM2-135M-Instruct and score them with the rule.

    make model
    python scripts/demo/make_preferences.py

Every prompt of ``prompts.txt`` is answered five times, each time in another style (hidden messages before
the prompt and a temperature, see ``STYLES``). The styles make the answers differ in length and directness;
they are not stored, so the rows hold the plain prompt alone. The raw samples are kept in ``--samples``, one
line per prompt, and an interrupted run resumes where it stopped. When all prompts are answered, empty and
duplicate answers are dropped, the rule scores the rest, and the rows are split by prompt into two files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rule import score, words

HERE = Path(__file__).resolve().parent
BRIEF = (
    ("system", "Answer in one short sentence."),
    ("user", "Why is grass green?"),
    ("assistant", "Its cells hold a green dye that catches sunlight."),
    ("user", "Write a line about autumn."),
    ("assistant", "Golden leaves drift over the quiet lane."),
)
GUSHING = (
    ("system", "Be friendly."),
    ("user", "Why is grass green?"),
    ("assistant", "Great question! Grass is green because its cells hold a green dye. I hope this helps!"),
    ("user", "Write a line about autumn."),
    ("assistant", "Sure! Here is a line about autumn: Golden leaves drift over the quiet lane. Enjoy!"),
)
LONG = (("system", "Repeat the question and explain everything in detail."),)
STYLES: tuple[tuple[tuple[tuple[str, str], ...], float], ...] = (
    ((), 0.6),  # the chat template's own system message
    (LONG, 0.7),
    (GUSHING, 0.7),
    (BRIEF, 0.4),
    (BRIEF, 0.8),
)
MAX_NEW_TOKENS = 32
PROMPTS_PER_BATCH = 8
MIN_RESPONSES = 3
HELDOUT_PROMPTS = 50
SEED = 20240


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file, one a line, without blank lines; a repeated one is an error."""
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(set(prompts)) != len(prompts):
        raise SystemExit(f"error: {path} holds a prompt twice; remove the repetition.")
    return prompts


def read_samples(path: Path) -> dict[str, list[str]]:
    """Return the raw samples so far; a last line that was cut off by a stop is removed from the file."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row["prompt"]: row["responses"] for row in rows}


def chat(tokenizer: Any, prompt: str, before: tuple[tuple[str, str], ...]) -> str:
    """Return the text that the model continues: the hidden messages, the prompt, the start of an answer."""
    messages = [{"role": role, "content": content} for role, content in (*before, ("user", prompt))]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def sample(model: Any, tokenizer: Any, prompts: list[str], seed: int) -> list[list[str]]:
    """Sample one answer in each style for each prompt, all in one batch that the seed decides."""
    import torch

    texts = [chat(tokenizer, prompt, before) for prompt in prompts for before, _ in STYLES]
    heat = torch.tensor([temperature for _ in prompts for _, temperature in STYLES])
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(seed)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=True,
            top_p=0.9,
            top_k=50,
            logits_processor=[lambda _, logits: logits / heat[:, None]],  # one temperature for each row
            pad_token_id=tokenizer.pad_token_id,
        )
    new = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [text.strip() for text in new]
    return [answers[i : i + len(STYLES)] for i in range(0, len(answers), len(STYLES))]


def sample_all(folder: Path, prompts: list[str], path: Path) -> dict[str, list[str]]:
    """Answer every prompt that the samples file lacks, and append the answers to it batch by batch."""
    done = read_samples(path)
    batches = [prompts[i : i + PROMPTS_PER_BATCH] for i in range(0, len(prompts), PROMPTS_PER_BATCH)]
    if all(prompt in done for prompt in prompts):
        return done
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        if all(prompt in done for prompt in batch):
            continue
        answers = sample(model, tokenizer, batch, SEED + number)
        with path.open("a", encoding="utf-8") as file:
            for prompt, responses in zip(batch, answers, strict=True):
                if prompt not in done:
                    done[prompt] = responses
                    file.write(
                        json.dumps({"prompt": prompt, "responses": responses}, ensure_ascii=False) + "\n"
                    )
        print(f"batch {number + 1} of {len(batches)}, {time.perf_counter() - started:.0f} s", flush=True)
    return done


def make_row(prompt: str, samples: list[str]) -> dict[str, Any] | None:
    """Turn raw samples into a scored row; None when too few differ or all score the same."""
    responses: dict[str, str] = {}
    for text in samples:
        key = " ".join(words(text))
        if key and "\ufffd" not in text:
            responses.setdefault(key, text)
    kept = list(responses.values())
    scores = [score(prompt, text) for text in kept]
    if len(kept) < MIN_RESPONSES or len(set(scores)) == 1:
        return None
    return {"prompt": prompt, "responses": kept, "scores": scores}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, by way of a temporary file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    temporary.replace(path)


def shorter_is_better(rows: list[dict[str, Any]]) -> float:
    """Return the share of unequal pairs whose shorter response scores higher (equal lengths count half)."""
    credits = []
    for row in rows:
        answers = zip(row["scores"], (len(words(text)) for text in row["responses"]), strict=True)
        for (first, long), (second, other) in itertools.combinations(answers, 2):
            if first != second:
                credits.append(0.5 if long == other else float((first > second) == (long < other)))
    return statistics.mean(credits)


def describe(name: str, rows: list[dict[str, Any]]) -> None:
    """Print how many rows there are and how the scores spread."""
    scores = [value for row in rows for value in row["scores"]]
    lengths = [len(words(text)) for row in rows for text in row["responses"]]
    spread = statistics.mean(statistics.pstdev(row["scores"]) for row in rows)
    gap = statistics.mean(max(row["scores"]) - min(row["scores"]) for row in rows)
    quarters = ", ".join(f"{value:.2f}" for value in statistics.quantiles(scores, n=4))
    print(f"{name}: {len(rows)} prompts, {len(scores)} responses of {statistics.mean(lengths):.1f} words")
    print(f"  score mean {statistics.mean(scores):.2f}, quartiles {quarters}")
    print(
        f"  within a prompt: standard deviation {spread:.2f}, best less worst {gap:.2f} (means over prompts)"
    )
    print(f"  correlation of score and words: {statistics.correlation(scores, lengths):.2f}")
    print(f"  pairs in which the shorter response is the better one: {shorter_is_better(rows):.0%}")


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Make the demo's preference data.")
    parser.add_argument("--model", type=Path, default=Path(".cache/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--samples", type=Path, default=Path(".cache/demo/samples.jsonl"))
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the two output files")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        print(f"error: {options.model} holds no model; type `make model`.", file=sys.stderr)
        return 1
    prompts = read_prompts(HERE / "prompts.txt")
    random.Random(SEED).shuffle(prompts)
    samples = sample_all(options.model, prompts, options.samples)
    parts = {"heldout": prompts[:HELDOUT_PROMPTS], "train": prompts[HELDOUT_PROMPTS:]}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, members in parts.items():
        rows = [row for prompt in members if (row := make_row(prompt, samples[prompt])) is not None]
        write_rows(options.out / f"preferences_{name}.jsonl", rows)
        describe(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
