"""Whether a program printed what its documentation shows."""

from __future__ import annotations

import re

# Commas that group thousands are part of a number, those of a csv file are not.
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)(?:[eE][-+]?\d+)?(?!\w)")
ANYTHING = re.compile(r"\.{3}|…")


def differs(shown: str, printed: str) -> str | None:
    """What is wrong, or None.

    Blanks at the ends of lines do not count, and `...` stands for anything. A number is met to within one unit of its
    last digit, as processors and releases of torch round differently.
    """
    expected, got = _lines(shown), _lines(printed)
    pattern = r"(?s)" + r"(.*?)".join(re.escape(part) for part in ANYTHING.split(_without_numbers(expected)))
    match = re.fullmatch(pattern, _without_numbers(got))
    wrong = f"shown:\n{expected}\n\nprinted:\n{got}"
    if match is None:
        return wrong
    skipped = [len(NUMBER_MARK.findall(text)) for text in match.groups()]
    numbers = NUMBER.findall(got)
    for part, skip in zip(ANYTHING.split(expected), [*skipped, 0], strict=True):
        for number in NUMBER.findall(part):
            if not _near(number, numbers.pop(0)):
                return f"{number} is not among them\n{wrong}"
        del numbers[:skip]
    return None


NUMBER_MARK = re.compile("\0")


def _without_numbers(text: str) -> str:
    return NUMBER.sub("\0", text)


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _near(shown: str, printed: str) -> bool:
    shown, printed = (text.replace(",", "").replace("−", "-") for text in (shown, printed))
    if "." not in shown and "e" not in shown.lower():
        return shown == printed
    digits, _, exponent = shown.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(shown) - float(printed)) < 1.001 * unit
