"""Whether a figure on a page is a measured value, to the digits that it is written with."""

import re


def is_rounded(written: str, value: float) -> bool:
    """Whether the first number of a cell is that value to its own digits."""
    number = re.search(r"-?[\d.]+", written)[0]
    return abs(float(number) - value) <= 0.5001 * 10.0 ** -len(number.partition(".")[2])
