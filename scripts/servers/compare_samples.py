"""Compare the samples of two folders of `prefopt sample`, token by token.

python scripts/servers/compare_samples.py FOLDER OTHER
"""

from __future__ import annotations

import sys
from pathlib import Path

from pl_prefopt.generation.shards import read_shards


def main() -> None:
    """Print how many samples are equal, and end with status 1 if one is not."""
    ours, others = (list(read_shards(Path(folder))) for folder in sys.argv[1:3])
    if [row["prompt"] for row in ours] != [row["prompt"] for row in others]:
        raise SystemExit("The folders have other prompts.")
    pairs = [
        (one, other)
        for row, their in zip(ours, others, strict=True)
        for one, other in zip(row["token_ids"], their["token_ids"], strict=True)
    ]
    if not pairs:
        raise SystemExit(f"expected samples in {' and '.join(sys.argv[1:3])}, found none.")
    equal = sum(one == other for one, other in pairs)
    print(f"{equal} of {len(pairs)} samples have the same tokens.")
    for place, (one, other) in enumerate(pairs):
        if one != other:
            same = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            print(f"  sample {place}: the first token that differs is number {same}")
    raise SystemExit(equal != len(pairs))


if __name__ == "__main__":
    main()
