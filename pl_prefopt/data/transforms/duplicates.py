"""Transforms that remove what occurs twice, exactly or nearly, within a split or in another one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.transforms.base import Outcomes, RowTransform
from pl_prefopt.errors import ConfigError
from pl_prefopt.rows import PreferenceRow

By: TypeAlias = Literal["prompt", "row"]
"""What is compared: the prompt, or the prompt and its responses."""

_PERMUTATIONS = 128


def text_of(row: PreferenceRow, by: By) -> str:
    """Return the text that is compared: lower-cased, with single spaces.

    Examples:
        >>> from pl_prefopt.rows import Message
        >>> prompt, response = (Message("user", " Who  is it?"),), (Message("assistant", "I."),)
        >>> row = PreferenceRow(prompt=prompt, responses=(response,))
        >>> text_of(row, "prompt"), text_of(row, "row")
        ('who is it?', 'who is it? i.')
    """
    turns = [*row.prompt, *(message for one in row.responses for message in one if by == "row")]
    return " ".join(" ".join(message.content for message in turns).casefold().split())


@dataclass(frozen=True)
class RemoveDuplicates(RowTransform):
    """Removes rows whose text an earlier row has, but for case and white space.

    Args:
        by: ``row`` compares prompt and responses, ``prompt`` the prompt alone.
    """

    by: By = "row"

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        seen: set[str] = set()
        for number, row in enumerate(rows):
            text = text_of(row, self.by)
            if text not in seen:
                seen.add(text)
                yield number, None


@dataclass(frozen=True)
class RemoveNearDuplicates(RowTransform):
    """Removes rows that are nearly an earlier row that stays: their sets of word n-grams overlap.

    Candidates come from MinHash (datasketch), so a pair just above the threshold may be missed; each
    candidate is then compared exactly, so none is removed below it.

    Args:
        threshold: the least Jaccard similarity of the sets, above 0 and up to 1.
        by: ``row`` compares prompt and responses, ``prompt`` the prompt alone.
        words: n, the number of words of an n-gram.

    Raises:
        ConfigError: if a setting is outside its range, or without datasketch.
    """

    threshold: float = 0.8
    by: By = "row"
    words: int = 3

    def __post_init__(self) -> None:
        _check(type(self).__name__, self.threshold, self.words)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        index = Similar(self.threshold, self.words)
        for number, row in enumerate(rows):
            if not index.has(text := text_of(row, self.by)):
                index.add(text)
                yield number, None


@dataclass(frozen=True)
class RemoveLeakage(RowTransform):
    """Removes training rows that the validation or test rows have, too.

    Args:
        by: ``prompt`` compares prompts, ``row`` prompts with their responses.
        threshold: the least similarity as in ``RemoveNearDuplicates``; by default only equal texts count, but
            for case and white space.
        words: the number of words of an n-gram.

    Raises:
        ConfigError: if there are no rows to compare with, a setting is outside its range, or a threshold is
            given without datasketch.
    """

    reads_held_out: ClassVar[bool] = True
    by: By = "prompt"
    threshold: float | None = None
    words: int = 3

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check(type(self).__name__, self.threshold, self.words)

    def apply(self, rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Outcomes:
        if not len(held_out):
            raise ConfigError(
                "RemoveLeakage needs rows to compare with: set `data.val`, `data.test` or `data.held_out`, "
                "or `--held_out FILE` of `prefopt transform`."
            )
        is_known = leaks(held_out, self.by, self.threshold, self.words)
        for number, row in enumerate(rows):
            if not is_known(text_of(row, self.by)):
                yield number, None


def leaks(
    held_out: Iterable[PreferenceRow], by: By, threshold: float | None = None, words: int = 3
) -> Callable[[str], bool]:
    """Return a function that says whether held-out rows have a text, or nearly."""
    texts = {text_of(row, by) for row in held_out}
    if threshold is None:
        return texts.__contains__
    index = Similar(threshold, words)
    for text in sorted(texts):
        index.add(text)
    return index.has


def _check(name: str, threshold: float, words: int) -> None:
    if not 0 < threshold <= 1:
        raise ConfigError(f"expected `threshold` of {name} to be above 0 and at most 1, got {threshold}.")
    if words < 1:
        raise ConfigError(f"expected `words` of {name} to be at least 1, got {words}.")
    _import_datasketch(name)


class Similar:
    """Texts by which similar ones are found.

    Args:
        threshold: the least Jaccard similarity of the sets of n-grams.
        words: n.
    """

    def __init__(self, threshold: float, words: int) -> None:
        self._library = _import_datasketch("Similar")
        self.threshold, self.words = threshold, words
        self._index = self._library.MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._sets: list[npt.NDArray[np.uint64]] = []

    def add(self, text: str) -> None:
        """Add a text."""
        grams = list(n_grams(text, self.words))
        self._index.insert(len(self._sets), self._sketch(grams))
        self._sets.append(_hashed(grams))

    def has(self, text: str) -> bool:
        """Return whether a text is similar to one that was added."""
        grams = list(n_grams(text, self.words))
        own = _hashed(grams)
        candidates = self._index.query(self._sketch(grams))
        return any(jaccard(own, self._sets[number]) >= self.threshold for number in candidates)

    def _sketch(self, grams: Sequence[bytes]) -> Any:
        sketch = self._library.MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch(grams)
        return sketch


def n_grams(text: str, words: int) -> Iterator[bytes]:
    """Yield the n-grams of a text; of a shorter one, the text itself.

    Examples:
        >>> list(n_grams("a b c", 2)), list(n_grams("a", 2))
        ([b'a b', b'b c'], [b'a'])
    """
    parts = text.split(" ")
    for start in range(max(1, len(parts) - words + 1)):
        yield " ".join(parts[start : start + words]).encode("utf-8", "surrogatepass")


def _hashed(grams: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """Return the set of n-grams as sorted 64-bit hashes."""
    values = [int.from_bytes(hashlib.blake2b(one, digest_size=8).digest()) for one in set(grams)]
    return np.sort(np.array(values, dtype=np.uint64))


def jaccard(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    """Return the size of the intersection of two sets over that of their union.

    Examples:
        >>> jaccard(np.array([1, 2, 3], dtype=np.uint64), np.array([2, 3, 4], dtype=np.uint64))
        0.5
    """
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def _import_datasketch(name: str) -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise ConfigError(
            f"{name} finds similar texts with datasketch, which is not installed: "
            "`pip install 'pl-prefopt[dedup]'`."
        ) from error
    return datasketch
