"""One published value next to what the model gives."""

from __future__ import annotations

from dataclasses import dataclass

#: What a row claims: ``exact`` values follow from rules and limits; a ``shape`` is to come out within a
#: tolerance that was fixed beforehand; what is ``calibrated`` was put in and proves nothing.
KINDS = ("exact", "shape", "calibrated")


@dataclass(frozen=True)
class Row:
    """``published`` is the value of ``source``; the model's must lie in ``[low, high]``.

    ``reason`` says why the model differs where it fails; ``unit`` what is counted.
    """

    name: str
    kind: str
    source: str
    unit: str
    published: float
    model: float
    low: float
    high: float
    reason: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)} (got {self.kind!r})")

    @property
    def passed(self) -> bool:
        """True if the model's value lies within the tolerance."""
        return self.low <= self.model <= self.high

    @property
    def shown_reason(self) -> str:
        """Why the row failed, or nothing where it did not."""
        if self.kind == "calibrated" or self.passed:
            return ""
        return self.reason or "not known"

    @property
    def verdict(self) -> str:
        """``pass``, ``FAIL`` or ``calibrated``."""
        if self.kind == "calibrated":
            return "calibrated"
        return "pass" if self.passed else "FAIL"

    @property
    def tolerance(self) -> str:
        """The tolerance in words."""
        if self.kind == "calibrated":
            return "put in"
        if self.low == self.high:
            return "equal"
        return f"{self.low:.4g} to {self.high:.4g}"


def exact(name: str, source: str, unit: str, published: float, model: float) -> Row:
    """Return a row whose values must be equal."""
    return Row(name, "exact", source, unit, published, model, published, published)


def within_factor(
    name: str, source: str, unit: str, published: float, model: float, factor: float = 2.0, reason: str = ""
) -> Row:
    """Return a row whose model must lie within a factor of what was published."""
    low, high = published / factor, published * factor
    return Row(name, "shape", source, unit, published, model, low, high, reason)
