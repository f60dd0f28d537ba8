"""Units as files write them: the same one in several letters."""

import unicodedata
from collections.abc import Iterable


def match_unit(stated: str, units: Iterable[str]) -> str | None:
    """The entry of `units` that `stated` means; None where none does.

    Letters that look alike count as one: the two micro signs and a leading u before another letter, the two
    ohm signs, m/s² and m/s2. Capitals differ: mV is not MV.
    """
    known = list(units)
    if stated in known:
        return stated
    return next((unit for unit in known if _plain(unit) == _plain(stated)), None)


def _plain(unit: str) -> str:
    plain = unicodedata.normalize("NFKC", unit).strip()
    return "\N{GREEK SMALL LETTER MU}" + plain[1:] if plain[:1] == "u" and len(plain) > 1 else plain
