"""Users, or annotators, as a column of the data: which there are, and what number each has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt.errors import DataError, listed
from pl_prefopt.rows import PreferenceRow, Value


class Users:
    """The users of the training rows, numbered from 0 in sorted order, and after them those added later.

    Args:
        column: the column that names a row's user, by a text or by a whole number.
        known: the users.
    """

    def __init__(self, column: str, known: Sequence[str | int] = ()) -> None:
        self.column = column
        self.known: list[str | int] = list(known)
        self._number = {user: number for number, user in enumerate(self.known)}

    def __len__(self) -> int:
        return len(self.known)

    def numbers(self, values: Tensor) -> Tensor:
        """Return the users' numbers for a column's values, int64 [N], −1 for one who isn't known.

        Args:
            values: [N], users as they are where they are whole numbers; else as ``encode`` numbers them.
        """
        if not self.known or isinstance(self.known[0], str):
            return values.nan_to_num(nan=-1).long()
        known, order = torch.tensor(self.known, dtype=torch.float64, device=values.device).sort()
        wanted = values.double().nan_to_num(nan=torch.inf)
        place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        return torch.where(known[place] == wanted, order[place], -1)

    def encode(self, texts: Sequence[str | None]) -> Tensor:
        """Return the numbers of users given as texts, −1 for one who isn't known."""
        return torch.tensor([-1 if text is None else self._number.get(text, -1) for text in texts])

    def with_user(self, user: str | int) -> Users:
        """Return these users and one more, with the highest number.

        Raises:
            DataError: if the user is known already, or a text where the others are numbers.
        """
        if user in self._number:
            raise DataError(f"expected a new user, but {user!r} is known already: give another name.")
        if self.known and isinstance(user, str) != isinstance(self.known[0], str):
            raise DataError(
                f"expected a user like the others, such as {self.known[0]!r}, got {user!r}: give a text if "
                "they are texts, a whole number if they are numbers."
            )
        return Users(self.column, [*self.known, user])

    @classmethod
    def of(cls, column: str, rows: Sequence[PreferenceRow]) -> Users:
        """Return the users of ``rows``.

        Raises:
            DataError: if a row has none, or if some users are texts and others numbers.
        """
        found = {user_of(column, "train", row) for row in rows}
        if len({isinstance(user, str) for user in found}) > 1:
            raise DataError(
                f"expected users of one kind in the column '{column}', got texts and numbers in the "
                "train rows: write all of them as texts."
            )
        return cls(column, sorted(found, key=lambda user: (str(type(user)), user)))

    def check(self, split: str, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows without a user or with one who isn't known.

        Raises:
            DataError: naming the row.
        """
        for row in rows:
            user = user_of(self.column, split, row)
            if self.known and user not in self._number:
                raise DataError(
                    f"expected one of the {len(self)} users of the training rows "
                    f"({listed(map(str, self.known), most=5)}) in the column '{self.column}', got {user!r} "
                    f"in {_place(row, split)}: add the user first with `prefopt adapt`, or remove the row."
                )

    def check_pairs(self, rows: Sequence[PreferenceRow], fewest: int) -> None:
        """Refuse a user with fewer than ``fewest`` pairs in the training rows.

        Raises:
            DataError: naming one.
        """
        counts = Counter({user: 0 for user in self.known})
        for row in rows:
            counts[user_of(self.column, "train", row)] += pairs_in(row)
        user, count = min(counts.items(), key=lambda item: item[1], default=("", fewest))
        if count < fewest:
            few = sum(each < fewest for each in counts.values())
            raise DataError(
                f"expected at least {fewest} pairs per user in the train rows, got {count} of the user "
                f"{user!r} in the column '{self.column}' ({few} users have too few): remove these users' "
                f"rows, or set `min_pairs` to {max(count, 1)}."
            )


def pairs_in(row: PreferenceRow) -> int:
    """Return the number of pairs of responses with different scores."""
    scores = row.scores or ()
    ties = sum(count * (count - 1) // 2 for count in Counter(scores).values())
    return len(scores) * (len(scores) - 1) // 2 - ties


def user_of(column: str, split: str, row: PreferenceRow) -> str | int:
    """Return a row's user.

    Raises:
        DataError: if there is none, or no single text or whole number.
    """
    value: Value = row.columns.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        found = "none" if value is None else repr(value)
        raise DataError(
            f"expected a user, a text or a whole number, in the column '{column}', got {found} in "
            f"{_place(row, split)}: add it to the data, or remove the row."
        )
    return value


def _place(row: PreferenceRow, split: str) -> str:
    return f"{row.origin or 'a row'} ({split})"
