"""Write lengths.json: how many tokens real rows have, for rows of random tokens with the same lengths.

python -m scripts.benchmarks.lengths

A row is `[prompt, response, response, ...]`, of the first rows of each file by SmolLM2's tokeniser.
"""

from __future__ import annotations

import json
import tempfile

from pl_prefopt.data import PreferenceDataModule
from scripts.benchmarks.rows import LENGTHS

FILES = {"hh_pairs": "hh_harmless.jsonl.gz", "alpaca_lists": "alpacaeval_ranked.jsonl.gz"}
MODEL = ".cache/models/SmolLM2-135M-Instruct"


def main(rows: int = 300) -> None:
    """Tokenise the files and write the lengths."""
    found = {}
    for name, file in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            data = PreferenceDataModule(
                f"../shared/data/{file}",
                tokenizer=MODEL,
                max_rows=rows,
                max_prompt_length=4096,
                max_response_length=4096,
                on_bad_row="skip",
                cache_dir=folder,
            )
            data.prepare_data()
            data.setup("fit")
            dataset = data.datasets["train"]
            trees = [dataset.batch([number]).trees["plain"] for number in range(len(dataset))]
            found[name] = [[tree.prompt_lengths[0], *tree.response_sizes[0]] for tree in trees]
    lines = ",\n".join(f'  "{name}": {json.dumps(sizes)}' for name, sizes in found.items())
    LENGTHS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
