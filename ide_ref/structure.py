"""Structure strings of the paper's tables: ``64C5s (F64C5)``, ``400 (F400)``.

Source: the notation of the paper's tables, https://arxiv.org/abs/2109.14247, in full in ``docs/networks.md``.
"""

from __future__ import annotations

import re

from ide_ref import _checks
from ide_ref.constraints import Restriction
from ide_ref.network import INPUT, Connection, Network, Population, Readout
from ide_ref.neurons import Neuron
from ide_ref.synapses import Conv2d, ConvTranspose2d, Dense, Shape, Synapse

_LAYER = re.compile(r"(?P<size>[0-9]{1,9})(?:C(?P<kernel>[0-9]{1,9})(?P<mode>[su]?))?")
_LAYERS = "'400', '64C5', '64C5s' (stride 2) or '96C3u'"
_LONGEST = 10_000
"""Characters; the largest of the paper has 36."""
_TOKEN = re.compile(r"[-()F]|[^-()\s]+")


def _synapse(token: str, source: Shape, text: str, at: int) -> Synapse:
    match = _LAYER.fullmatch(token)
    if not match or int(match["size"]) == 0:
        raise ValueError(_point(text, at, f"{token!r} is no layer; expected one like {_LAYERS}"))
    size = int(match["size"])
    if match["kernel"] is None:
        return Dense(source, (size,))
    kernel = int(match["kernel"])
    if len(source) != 3:
        raise ValueError(_point(text, at, f"{token!r} needs a picture to read, but what is sent has shape {source}"))
    try:
        if match["mode"] == "u":
            return ConvTranspose2d.over(source, size, kernel=kernel)
        return Conv2d.over(source, size, kernel=kernel, stride=2 if match["mode"] == "s" else 1)
    except ValueError as error:
        raise ValueError(_point(text, at, f"{token!r} does not fit: {error}")) from None


def _point(text: str, at: int, message: str) -> str:
    return f"structure {text!r}, position {at + 1}: {message}"


def _parse(text: str) -> tuple[list[tuple[str, int]], tuple[str, int] | None]:
    """Layers and feedback of a structure string, each with its place in it."""
    tokens = [(found[0], found.start()) for found in _TOKEN.finditer(text)] + [("", len(text))]

    def take(wanted: str, expected: str) -> tuple[str, int]:
        """The next token, which must match ``wanted``, and its place; at the end it is empty."""
        token, at = tokens.pop(0)
        if not re.fullmatch(wanted, token):
            found = repr(token) if token else "the end"
            raise ValueError(_point(text, at, f"found {found}; expected {expected}"))
        return token, at

    layer = "[^-()F].*", f"a layer like {_LAYERS}"
    layers = [take(*layer)]
    while tokens[0][0] == "-":
        tokens.pop(0)
        layers.append(take(*layer))
    if not tokens[0][0]:
        return layers, None
    take(r"\(", "'-' and another layer, or the feedback connection in brackets, as in '400 (F400)'")
    take("F", "'F', which begins the feedback connection, as in '400 (F400)'")
    feedback = take(*layer)
    take(r"\)", "')', which ends the feedback connection, one layer")
    others = "several feedback paths, skips and pooling are written as an ide_ref.Network"
    take("", f"the end after the feedback connection ({others})")
    return layers, feedback


def build(
    structure: str,
    *,
    input_shape: Shape,
    n_classes: int,
    neuron: Neuron,
    dropout: float = 0.0,
    batch_norm: bool = True,
    restriction: Restriction | None = Restriction(),
) -> Network:
    """Network of a structure string.

    Parameters
    ----------
    structure : str
        Layers joined by ``-``, then one feedback connection in brackets from the last layer to the first:
        ``400 (F400)``.
    input_shape : tuple of int
        Of one sample, (n,) or (channels, rows, columns).
    n_classes : int
        Logits of the readout.
    neuron : Neuron
        Of all populations.
    dropout : float
        On the output of every connection, one mask per batch.
    batch_norm : bool
        On the input and the hidden connections.
    restriction : Restriction or None
        On the feedback connection.

    Raises
    ------
    ValueError
        With the place, where the string does not parse or a shape does not fit; or for sizes that are no whole
        numbers of at least 1.
    """
    input_shape = _checks.shape("input_shape", input_shape)
    n_classes = _checks.whole("n_classes", n_classes)
    _checks.kind("structure", structure, str)
    if len(structure) > _LONGEST:
        raise ValueError(f"structure has {len(structure)} characters; expected at most {_LONGEST}")
    layers, feedback = _parse(structure)
    populations: list[Population] = []
    connections: list[Connection] = []
    shape, source = input_shape, INPUT
    for i, (token, at) in enumerate(layers):
        synapse = _synapse(token, shape, structure, at)
        name, target = INPUT if i == 0 else f"hidden{i}", f"a{i + 1}"
        populations.append(Population(target, synapse.out_shape))
        connections.append(Connection(name, source, target, synapse, bias=True, batch_norm=batch_norm, dropout=dropout))
        shape, source = synapse.out_shape, target
    if feedback is not None:
        token, at = feedback
        synapse = _synapse(token, shape, structure, at)
        first = populations[0]
        if synapse.out_shape != first.shape:
            found = f"connection 'feedback' arrives with shape {synapse.out_shape}"
            raise ValueError(_point(structure, at, f"{found}, but the first layer has {first.shape}"))
        back = Connection("feedback", source, first.name, synapse, restriction=restriction, dropout=dropout)
        connections.append(back)
    readout = Readout(source, Dense(shape, (n_classes,)))
    return Network(input_shape, tuple(populations), tuple(connections), readout, neuron)
