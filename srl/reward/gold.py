r"""A gold answer as text: the answer and, in brackets behind it, what its benchmark says about it.

    42
    \frac{600}{7} [unit: km/h]
    4.2 [unit: %; error: 1e-1]

Golds travel as text through files, trajectories and tables; this is the one place that reads and writes the brackets.
"""

import math
import re
from typing import NamedTuple

from srl.reward.answer import gold_answer
from srl.reward.spelling import IN_TEXT, normalise

NOTES = re.compile(r"\s*\[(?:unit: (?P<unit>[^\];]+))?(?:; )?(?:error: (?P<error>[^\];]+))?\]$")
UNIT_STARTS = re.compile(r"(?<=[\d})\]$])\s*(?=[\\A-Za-z%^°~$ ])")
LONGEST_UNIT = 100  # characters
UNITS = {
    "%": ["percent", "per cent", "percentage"],
    "circ": ["degree", "degrees", "deg", "°"],
    "min": ["minute", "minutes", "mins"],
    "s": ["second", "seconds", "sec", "secs"],
    "h": ["hour", "hours", "hr", "hrs"],
    "day": ["days", "d"],
    "m": ["meter", "meters", "metre", "metres"],
    "km": ["kilometer", "kilometers", "kilometre", "kilometres"],
    "cm": ["centimeter", "centimeters", "centimetre", "centimetres"],
    "mm": ["millimeter", "millimeters", "millimetre", "millimetres"],
    "kg": ["kilogram", "kilograms"],
    "g": ["gram", "grams"],
}
ALIASES = {alias: unit for unit, aliases in UNITS.items() for alias in aliases}


class Gold(NamedTuple):
    """`answer` normalised; `unit` as the benchmark writes it; `error` the absolute error allowed to numbers."""

    answer: str
    unit: str = ""
    error: float = 0.0


def read_gold(text: str) -> Gold:
    """Raises ValueError, naming the gold, if its answer is empty or its error is no number."""
    notes = NOTES.search(text)
    unit, error = (notes["unit"] or "", notes["error"] or "0") if notes and (notes["unit"] or notes["error"]) else ("", "0")
    answer = normalise(gold_answer(text[: notes.start()] if unit or error != "0" else text))
    if not answer:
        raise ValueError(f"gold {text!r} is empty")
    try:
        allowed = float(error)
    except ValueError:
        allowed = math.nan
    if not math.isfinite(allowed):
        raise ValueError(f"gold {text!r}: its error {error!r} is no number")
    return Gold(normalise(split_unit(answer, unit)[0]), unit, allowed)


def write_gold(answer: str, unit: str | None = None, error: str | float | None = None) -> str:
    notes = [f"{name}: {value}" for name, value in (("unit", unit), ("error", error)) if value not in (None, "", 0, 0.0)]
    return f"{answer} [{'; '.join(notes)}]" if notes else answer


def split_unit(answer: str, unit: str) -> tuple[str, str]:
    r"""The answer without the unit behind it, and that unit's name ("" without one): `5 \mathrm{~km} / \mathrm{h}` is 5 and km/h.

    Looks for `unit` and for the units that everybody knows, in any of their spellings.
    """
    if not unit:
        return answer, ""
    for match in UNIT_STARTS.finditer(answer, max(0, len(answer) - LONGEST_UNIT)):
        name = unit_name(answer[match.end() :])
        if name == unit_name(unit) or name.removesuffix("^2").removesuffix("^3") in UNITS:
            return answer[: match.start()], name
    return answer, ""


def without_measure(answer: str) -> str:
    r"""A number without an attached unit of two letters or with a power, such as 5km or `5m^{2}`; `5m` may be a product."""
    number, name = split_unit(answer, "km")
    return normalise(number) if len(name) > 1 else answer


def unit_name(text: str) -> str:
    r"""km, `\mathrm{~km}` and "kilometers" are km; `^{\circ}` and "degrees" are circ."""
    plain = re.sub(r"[\\${}~]", "", IN_TEXT.sub(r"\1", text)).strip(" .").lower().removeprefix("^")
    plain = re.sub(r"^square (\w+)", r"\1^2", plain)
    parts = [part.strip() for part in re.split(r"/|\bper (?!cent)", plain)]
    return "/".join(ALIASES.get(part, part) for part in parts)
