"""Which option the answers of a file mean: one reading for all of its rows, since a guess row by row swaps
labels without a word.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import DataError
from .cells import json_cell, short
from .examples import checked_probs
from .formats import Row
from .prompts import LETTERS

AnswerForm = Literal["auto", "index", "number", "letter", "text", "label"]
# The readings that "auto" tries, the plainest first; a number counted from 1 is taken for one only where that
# is said.
TRIED: tuple[AnswerForm, ...] = ("text", "label", "letter", "index")
SAID = {
    "text": "the option's text",
    "label": "the option's label",
    "letter": "letters",
    "index": "indices counted from 0",
    "number": "numbers counted from 1",
}
# A slip in one row of a long file must not decide between two readings that fit all others.
NEARLY_AS_MANY = 0.95
SET_FORM = "set answer_form in the column mapping"


@dataclass(frozen=True)
class Asked:
    """A row with an answer: the answer, the options, their labels where a column has some, and whether
    options are label words.
    """

    row: Row
    value: object
    options: tuple[str, ...]
    option_labels: tuple[str, ...] | None = None
    words: bool = False

    @property
    def forms(self) -> tuple[AnswerForm, ...]:
        """The readings that "auto" tries on this row."""
        left_out = {"letter"} if self.words else set()
        if self.option_labels is None:
            left_out.add("label")
        return tuple(form for form in TRIED if form not in left_out)

    @property
    def soft(self) -> bool:
        """Whether the answer is soft labels: probabilities by option, or in the order of the options."""
        given = self._parsed
        return isinstance(given, Mapping) or (isinstance(given, list) and all(map(_is_number, given)))

    @property
    def _parsed(self) -> object:
        return self.value if self.value in self.options else soft_labels_in(self.value)

    def probs(self) -> tuple[float, ...]:
        """The soft labels, one for each option; 0 for options that are not named.

        Raises:
            DataError: a name that is no option, or values that are no probabilities.
        """
        given = self._parsed
        values = given.values() if isinstance(given, Mapping) else given
        assert isinstance(values, Iterable)
        if not all(map(_is_number, values)):
            raise self.row.error(f"soft labels {short(given)} hold something that is no number")
        if not isinstance(given, Mapping):
            return checked_probs(list(values), count=len(self.options), where=self.row.place)
        names = [dataclasses.replace(self, value=name) for name in given]
        forms = [form for form in self.forms if all(len(name.places(form)) == 1 for name in names)]
        if not forms:
            wrong = next((name for name in names if not any(map(name.places, self.forms))), names[0])
            raise wrong.unlike(self.forms)
        probs = [0.0] * len(self.options)
        for name, value in zip(names, given.values(), strict=True):
            probs[name.places(forms[0])[0]] += value
        return checked_probs(probs, count=len(self.options), where=self.row.place)

    @property
    def text(self) -> str:
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value).strip()

    def places(self, form: str) -> list[int]:
        """The options that the answer means when it is read in this form."""
        count = len(self.options)
        if form == "text":
            return _positions(self.text, self.options)
        if form == "label":
            return [] if self.option_labels is None else _positions(self.text, self.option_labels)
        if form == "letter":
            return [] if self.words else _as_letter(self.text, count)
        return _as_number(self.text, count, first=1 if form == "number" else 0)

    def unlike(self, forms: Sequence[str]) -> DataError:
        """The error for an answer that means no option in any of these forms."""
        count = len(self.options)
        needed = {
            "index": f"an index from 0 to {count - 1}",
            "number": f"a number from 1 to {count}",
            "letter": f"a letter from a to {LETTERS[min(count, len(LETTERS)) - 1]}",
            "text": "the text of one option",
            "label": "the label of one option",
        }
        order = [form for form in ("index", "number", "text", "letter", "label") if form in forms]
        return self.row.error(
            f"answer {short(self.value)} is not among the options {short(list(self.options))}; "
            f"needed is {' or '.join(needed[form] for form in order)}"
        )


def named_in(answer: object) -> list[str]:
    """The classes that an answer names: itself, or those of soft labels.

    Example:
        >>> named_in(3), named_in({"bug": 0.7, "praise": 0.3})
        (['3'], ['bug', 'praise'])
    """
    value = soft_labels_in(answer)
    return [str(name) for name in value] if isinstance(value, Mapping) else [str(answer)]


def soft_labels_in(answer: object) -> object:
    """The answer, as JSON where it is a cell of a .csv file that holds an object or a list."""
    return list(answer) if isinstance(answer, tuple) else json_cell(answer)


@dataclass(frozen=True)
class Answers:
    """The form in which all answers were read, None where there was none to read; and for each the option, or
    what is wrong with it.
    """

    form: AnswerForm | None
    targets: tuple[int | DataError, ...]


class FittingForms:
    """The forms in which answers can be read, and how many of those that were added each one fits.

    Args:
        form: the one form to read them in, or "auto" for those that the rows allow.
    """

    def __init__(self, form: AnswerForm):
        self._form = form
        self._fits: dict[AnswerForm, int] = {}

    def add(self, asked: Asked) -> None:
        """Count one more answer."""
        for form in asked.forms if self._form == "auto" else (self._form,):
            self._fits[form] = self._fits.get(form, 0) + (len(asked.places(form)) == 1)

    @property
    def tried(self) -> list[AnswerForm]:
        """The forms that were tried, in the order of their plainness."""
        return list(self._fits)

    @property
    def chosen(self) -> AnswerForm:
        """The form that fits most; at least one answer was added."""
        return max(self._fits, key=lambda form: self._fits[form])

    @property
    def best(self) -> list[AnswerForm]:
        """The forms that fit nearly as many as the chosen one."""
        least = NEARLY_AS_MANY * self._fits[self.chosen]
        return [form for form, fits in self._fits.items() if fits >= least]

    def target(self, asked: Asked) -> int | None:
        """The option that an answer means by these forms; None where they do not fit or do not agree."""
        chosen = asked.places(self.chosen)
        meant = {place for form in self.best for place in asked.places(form)}
        return chosen[0] if len(chosen) == 1 and len(meant) == 1 else None


def read_answers(asked: Sequence[Asked], *, form: AnswerForm) -> Answers:
    """The options that the answers mean, all of them read in the given form, or for "auto" in the one form
    that fits most of them.

    Where several forms fit nearly as many and do not agree, the rows on which they differ are wrong: nothing
    says which one is meant.
    """
    if not asked:
        return Answers(None, ())
    forms = FittingForms(form)
    for row in asked:
        forms.add(row)
    chosen, best = forms.chosen, forms.best
    read = {candidate: [row.places(candidate) for row in asked] for candidate in forms.tried}
    targets: list[int | DataError] = []
    for number, row in enumerate(asked):
        target = forms.target(row)
        meant = {place for candidate in best for place in read[candidate][number]}
        if target is not None:
            targets.append(target)
        elif len(meant) > 1:
            targets.append(_ambiguous(row, {candidate: read[candidate][number] for candidate in best}))
        else:
            targets.append(_unread(row, chosen, asked, read, number))
    return Answers(chosen, tuple(targets))


def _ambiguous(row: Asked, places: dict[AnswerForm, list[int]]) -> DataError:
    ways = ", ".join(f"{form} -> {short(row.options[p])}" for form, ps in places.items() for p in ps)
    return row.row.error(f"answer {short(row.value)} can mean different options ({ways}); {SET_FORM}")


def _unread(
    row: Asked,
    chosen: AnswerForm,
    asked: Sequence[Asked],
    read: dict[AnswerForm, list[list[int]]],
    number: int,
) -> DataError:
    """The error for a row whose answer cannot be read in the form that fits most of the file."""
    if row.text == str(len(row.options)) and chosen in ("index", "number") and _counted_from_one(asked):
        return row.row.error(
            f"answer {short(row.value)} is not among the indices of {len(row.options)} options, which count "
            "from 0, and no answer of the file is 0: if they count from 1, set answer_form to 'number'"
        )
    other = [form for form in read if form != chosen and len(read[form][number]) == 1]
    first = next((n for n, places in enumerate(read[chosen]) if len(places) == 1), None)
    if not other or first is None:
        return row.unlike(list(read))
    return row.row.error(
        f"answer {short(row.value)} can be read as {SAID[other[0]]} alone, and {short(asked[first].value)} "
        f"({asked[first].row.place}) as {SAID[chosen]}; all answers of a file are read in one way: "
        f"mend the row, or {SET_FORM}"
    )


def _counted_from_one(asked: Sequence[Asked]) -> bool:
    return all(re.fullmatch(r"[1-9][0-9]{0,8}(\.0+)?", row.text) for row in asked)


def _as_number(text: str, count: int, *, first: int) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(\.0+)?", text):
        return []
    index = int(text.partition(".")[0]) - first
    return [index] if 0 <= index < count else []


def _as_letter(text: str, count: int) -> list[int]:
    letter = text.strip("().").lower()
    return [LETTERS.index(letter)] if len(letter) == 1 and letter in LETTERS[:count] else []


def _positions(text: str, texts: Sequence[str]) -> list[int]:
    """The place of the text: as it is, else in any case of letters."""
    exact = [position for position, other in enumerate(texts) if other == text]
    return exact or [position for position, other in enumerate(texts) if other.casefold() == text.casefold()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
