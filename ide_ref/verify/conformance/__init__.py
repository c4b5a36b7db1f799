"""Conformance packs: small cases with the expected output of every stage, and the search for the first wrong number.

A pack is a folder with ``manifest.json`` and one safetensors file a case. Every array has the layout of the
field: batch first, then (time,) channels, rows, columns. A port reads ``input/*`` and ``param/*``, computes, and
returns or writes what the file has under ``expected/*``, as far as it goes. What is expected is what
:mod:`ide_ref.equations` gives in float64. Margins and rounding bounds in the pack make the tolerance a rule: inputs
are drawn so that no rounding of a right port can flip a spike, so every spike must agree, and then every later
number to a fixed relative tolerance.

Source: ``docs/conformance.md``.
"""

from ide_ref.verify.conformance.compare import CaseResult, ConformanceReport, Divergence, check, compare
from ide_ref.verify.conformance.make import cases, make
from ide_ref.verify.conformance.pack import (
    FORMAT,
    GROUPS,
    READINGS,
    RTOL,
    STAGES,
    TAGS,
    VERSION,
    Case,
    PackError,
    load,
    selected,
)
from ide_ref.verify.conformance.ports import reference, run_port, taken
from ide_ref.verify.conformance.protocol import ProtocolError, run_command
from ide_ref.verify.conformance.trained import make_trained

__all__ = ["CaseResult", "ConformanceReport", "Divergence", "check", "compare"]
__all__ += ["cases", "make"]
__all__ += [
    "FORMAT",
    "GROUPS",
    "READINGS",
    "RTOL",
    "STAGES",
    "TAGS",
    "VERSION",
    "Case",
    "PackError",
    "load",
    "selected",
]
__all__ += ["reference", "run_port", "taken"]
__all__ += ["ProtocolError", "run_command"]
__all__ += ["make_trained"]
