"""Frame rates as fractions."""

from __future__ import annotations

from fractions import Fraction


def as_rate(fps: Fraction | float) -> Fraction:
    """Return a frame rate as a fraction; floats near broadcast rates become those.

    >>> as_rate(29.97), as_rate(12.5)
    (Fraction(30000, 1001), Fraction(25, 2))
    """
    if isinstance(fps, Fraction):
        return fps
    exact = Fraction(fps).limit_denominator(1000)
    for nominal in (24, 30, 48, 60, 120):
        if abs(fps - nominal / 1.001) < 0.004:
            return Fraction(nominal * 1000, 1001)
    return exact
