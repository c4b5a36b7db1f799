"""Networks and training recipes by name: those of the paper's tables, and one for the embedded digits.

Source: the paper's tables of structures and settings, https://arxiv.org/abs/2109.14247.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ide_ref import _checks, _files, authors
from ide_ref.authors import PAPER, Profile, edited, profile_of
from ide_ref.constraints import Restriction
from ide_ref.network import Network
from ide_ref.neurons import IF, LIF, Neuron
from ide_ref.solvers import SOLVERS
from ide_ref.stbp import Surrogate
from ide_ref.structure import build


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the course of a training besides network and seed.

    Raises
    ------
    ValueError
        A field of the wrong kind or out of its range: counts are whole numbers, rates finite ones.
    """

    dataset: str
    """Name in the registry of data sets, or the place of one's own as `ide_ref.datasets.read_own` takes it."""
    n_steps: int
    """T, time steps of the simulation."""
    mean: tuple[float, ...] | None = None
    """One per channel, as `std`, in units where the brightest pixel is 1. None for those of the data set, see
    `ide_ref.datasets.Dataset.statistics`: a training puts the numbers here when it begins."""
    std: tuple[float, ...] | None = None
    epochs: int = 100
    batch_size: int = 128
    """The last batch of an epoch may be smaller; no sample is dropped."""
    lr: float = 0.05
    """Largest learning rate."""
    schedule: Literal["steps", "cosine", "one-cycle"] = "steps"
    """Its course, see `ide_ref.training.schedule.learning_rate`. The last two depend on the number of epochs."""
    milestones: tuple[int, ...] = ()
    """Of "steps": the epochs after which it is multiplied by `gamma`."""
    gamma: float = 0.1
    warmup_steps: int = 0
    """Batches of linear warm-up; of "steps" and "cosine"."""
    momentum: float = 0.9
    """See `ide_ref.training.sgd.SGD`, with the next three."""
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    readout_rate: float = 1.0
    """Learning rate of the readout, over that of all others. Descent of a readout is stable up to a rate in proportion
    to 1/‖a‖², which is small where many neurons fire; the others can be trained faster."""
    first_steps: int | None = None
    """T of the first epoch's batches, of static input, where that is to grow, see
    `ide_ref.training.schedule.time_steps`: what is tested, and learnt in the end, is the network of `n_steps`."""
    label_smoothing: float = 0.0
    """See `ide_ref.cross_entropy`."""
    crop: int = 0
    """Training images are shifted at random by up to so many pixels each way."""
    flip: bool = False
    """Every second training image, at random, is mirrored left to right."""
    input: Literal["static", "spikes"] = "static"
    """A constant image for all time steps, or a train of frames."""
    method: Literal["ide", "stbp"] = "ide"
    """Of the gradient: implicit differentiation at the equilibrium, or backpropagation through time."""
    surrogate: str = "rectangle"
    """Of "stbp", with the next two: see `ide_ref.Surrogate` and `ide_ref.backward_through_time`."""
    surrogate_width: float = 1.0
    through_reset: bool = True
    solver: str = "fixed_point"
    """How (BETA) is solved, of "ide", with the next three: see `ide_ref.backward`."""
    tol: float = 1e-1
    """The loosest that cost no accuracy where it was measured (docs/results); the library's default is for checking."""
    max_iter: int = 200
    allow_unconverged: bool = False
    dtype: str = "float32"
    """Of parameters and of all computation."""
    limit: int | None = None
    """Keep only the first `limit` samples of each split."""

    def __post_init__(self) -> None:
        for name in ("n_steps", "epochs", "batch_size", "max_iter", *(["limit"] if self.limit is not None else [])):
            _checks.whole(name, getattr(self, name))
        if self.n_steps >= 1 << 31:
            raise ValueError(f"n_steps is {self.n_steps}; expected less than 2^31")
        for name in ("warmup_steps", "crop"):
            _checks.whole(name, getattr(self, name), 0)
        if self.first_steps is not None:
            _checks.whole("first_steps", self.first_steps)
            if self.first_steps > self.n_steps:
                raise ValueError(f"first_steps is {self.first_steps}; expected at most n_steps, {self.n_steps}")
            if self.input == "spikes":
                raise ValueError("first_steps is of static input, as a train's frames depend on T; leave it out")
        for name in ("lr", "tol", "gamma", "readout_rate", *(["clip_norm"] if self.clip_norm is not None else [])):
            _checks.positive(name, getattr(self, name))
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            if not (_checks.is_real(value) and 0 <= value < 1):
                raise ValueError(f"{name} is {value!r}; expected a number in [0, 1)")
        if not (_checks.is_real(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay!r}; expected a finite number of at least 0")
        if not (isinstance(self.milestones, tuple) and all(map(_checks.is_whole, self.milestones))):
            raise ValueError(f"milestones is {self.milestones!r}; expected a tuple of epochs, each at least 1")
        for name in ("nesterov", "through_reset"):
            _checks.kind(name, getattr(self, name), bool)
        Surrogate(self.surrogate, self.surrogate_width)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, tuple) and value and all(map(_checks.is_real, value))):
                raise ValueError(f"{name} is {value!r}; expected a tuple of finite numbers, one per channel, or None")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; expected positive numbers")
        _checks.kind("dataset", self.dataset, str)
        _checks.one_of("dtype", self.dtype, ("float32", "float64"))
        _checks.one_of("solver", self.solver, tuple(SOLVERS))
        _checks.one_of("input", self.input, ("static", "spikes"))
        _checks.one_of("schedule", self.schedule, ("steps", "cosine", "one-cycle"))
        _checks.one_of("method", self.method, ("ide", "stbp"))


@dataclass(frozen=True)
class Preset:
    """A network, told by its structure string or as a graph (`of`), and the recipe that trains it."""

    name: str
    structure: str
    """See `ide_ref.build`; "graph" where `graph` tells the network."""
    input_shape: tuple[int, ...]
    """Shape of one sample, without batch and time."""
    n_classes: int
    neuron: Neuron
    dropout: float | None
    """Probability of a neuron to be left out of a batch; None for what each connection of the graph says."""
    recipe: Recipe
    norm: Literal["operator", "kernel"] = "operator"
    """Of the restriction of the feedback connection, see `ide_ref.Restriction`."""
    profile: Profile = PAPER
    """Differences of the authors' program to reproduce; none by default."""
    graph: Network | None = None
    """In place of a structure string; its neuron is `neuron`."""

    def __post_init__(self) -> None:
        _checks.kind("name", self.name, str)
        _checks.kind("recipe", self.recipe, Recipe)
        _checks.kind("profile", self.profile, Profile)
        _checks.kind("graph", self.graph, Network, type(None))
        if self.dropout is not None and not (_checks.is_real(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout is {self.dropout!r}; expected a number in [0, 1), or None for the graph's own")
        _checks.one_of("norm", self.norm, ("operator", "kernel"))
        sizes = self.input_shape, self.n_classes
        if self.graph is not None and sizes != (tuple(self.graph.input_shape), self.graph.n_classes):
            given = f"input_shape is {self.input_shape} and n_classes {self.n_classes}"
            raise ValueError(f"{given}, but the graph has {self.graph.input_shape} and {self.graph.n_classes}")

    @classmethod
    def of(cls, network: Network, recipe: Recipe, *, name: str = "graph") -> Preset:
        """Any network with a recipe, to be trained and saved; `norm` is what its restrictions say."""
        _checks.kind("network", network, Network)
        graph, profile = edited(network, PAPER), profile_of(network)
        sizes = tuple(network.input_shape), network.n_classes
        return cls(name, "graph", *sizes, network.neuron, None, recipe, profile=profile, graph=graph)

    @cached_property
    def network(self) -> Network:
        """The network that structure string or graph describe under the profile, built on first use.

        ValueError where they do not describe one.
        """
        if self.graph is not None:
            connections = self.graph.connections
            if self.dropout is not None:
                connections = tuple(replace(c, dropout=self.dropout) for c in connections)
            return edited(replace(self.graph, neuron=self.neuron, connections=connections), self.profile)
        if self.dropout is None:
            raise ValueError("dropout is None; expected a number, as no graph says it")
        sizes: dict[str, Any] = {"input_shape": self.input_shape, "n_classes": self.n_classes}
        restriction = Restriction(norm=self.norm)
        network = build(self.structure, **sizes, neuron=self.neuron, dropout=self.dropout, restriction=restriction)
        return edited(network, self.profile)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, fit for JSON; `from_dict` is the way back."""
        return _files.finite({**asdict(replace(self, graph=None)), "graph": self.graph and self.graph.to_dict()})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preset:
        """The preset that `to_dict` wrote, tuples restored where JSON made lists of them.

        Raises
        ------
        KeyError, TypeError, ValueError
            The fields are not those of a preset.
        """
        recipe: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["recipe"].items()}
        parts: dict[str, Any] = {"neuron": Neuron(**fields["neuron"]), "profile": Profile(**fields["profile"])}
        # Checkpoints of earlier versions know no graphs.
        parts["graph"] = Network.from_dict(fields["graph"]) if fields.get("graph") else None
        return cls(**{**fields, **parts, "input_shape": tuple(fields["input_shape"]), "recipe": Recipe(**recipe)})


_MNIST_LIKE = Recipe(dataset="mnist", n_steps=30, mean=(0.1307,), std=(0.3081,), milestones=(30, 60, 90))

_CIFAR = Recipe(
    dataset="cifar10",
    n_steps=30,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    milestones=(50, 75),
    warmup_steps=400,
    crop=4,
    flip=True,
    # Hidden connections are not restricted, so the plain iteration may not converge.
    solver="anderson",
)

_DIGITS = Recipe(
    dataset="digits", n_steps=5, mean=(0.305,), std=(0.376,), epochs=20, batch_size=32, lr=0.2, milestones=(10, 15)
)
_FASHION = replace(_MNIST_LIKE, dataset="fashion-mnist", n_steps=5)
_NMNIST = replace(_MNIST_LIKE, dataset="nmnist", mean=(0.0, 0.0), std=(1.0, 1.0), input="spikes")

# Presets with LIF neurons; `load` puts IF neurons in their place on request.
_TABLE = {
    preset.name: preset
    for preset in (
        Preset("digits", "256 (F256)", (64,), 10, LIF(0.95), 0.2, _DIGITS),
        Preset("fashion-mnist-400", "400 (F400)", (784,), 10, LIF(0.95), 0.2, _FASHION),
        Preset("mnist-64c5", "64C5s (F64C5)", (1, 28, 28), 10, LIF(0.95), 0.2, _MNIST_LIKE),
        Preset("nmnist-64c5", "64C5s (F64C5)", (2, 34, 34), 10, LIF(0.95), 0.2, _NMNIST),
        *(
            Preset(
                f"{data}-{name}",
                structure,
                (3, 32, 32),
                n_classes,
                LIF(0.99),
                0.2,
                replace(_CIFAR, dataset=data),
                # Their hidden batch normalisation makes them diverge otherwise.
                profile=Profile(batch_statistics_in_gradient=True),
            )
            for data, n_classes in (("cifar10", 10), ("cifar100", 100))
            for name, structure in (
                ("alexnet-f", "96C3s-256C3-384C3s-384C3-256C3 (F96C3u)"),
                ("cifarnet-f", "128C3s-256C3-512C3s-1024C3-512C3 (F128C3u)"),
            )
        ),
    )
}

_FASHION_FAST = replace(
    _FASHION,
    schedule="one-cycle",
    milestones=(),
    lr=0.4,
    batch_size=512,
    epochs=20,
    weight_decay=1e-4,
    label_smoothing=0.1,
)
_MNIST_FAST = replace(_MNIST_LIKE, schedule="one-cycle", milestones=(), lr=0.1, epochs=15, crop=2, first_steps=6)
# The same networks in few epochs, by one cycle of the learning rate.
_FAST = {
    "fashion-mnist-400": replace(_TABLE["fashion-mnist-400"], recipe=_FASHION_FAST, dropout=0.0),
    "mnist-64c5": replace(_TABLE["mnist-64c5"], recipe=_MNIST_FAST),
}


def names() -> tuple[str, ...]:
    """The presets there are."""
    return tuple(_TABLE)


def load(
    name: str,
    *,
    neuron: str = "lif",
    n_steps: int | None = None,
    norm: Literal["operator", "kernel"] = "operator",
    profile: Literal["paper", "authors"] = "paper",
    recipe: Literal["paper", "fast"] = "paper",
) -> Preset:
    """A preset by name.

    Parameters
    ----------
    name : str
        One of `names()`.
    neuron : {"lif", "if"}
    n_steps : int, optional
        T in place of the preset's own.
    norm : {"operator", "kernel"}
        Of the restriction.
    profile : {"paper", "authors"}
        ``authors`` turns on all differences of the authors' program: the kernel's norm, their solver (Broyden,
        30 steps, unconverged results taken) and every switch of `ide_ref.authors`.
    recipe : {"paper", "fast"}
        ``fast`` is the same network in few epochs; what it reaches is in docs/results. Not of every preset.

    Raises
    ------
    ValueError
        No preset or no neuron of that name, no fast recipe of it, or `n_steps` out of its range.
    """
    _checks.kind("name", name, str)
    if name not in _TABLE:
        nearest = difflib.get_close_matches(name, _TABLE, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"no preset is called {name!r}: {hint}there are {', '.join(_TABLE)}")
    _checks.one_of("neuron", neuron, ("lif", "if"))
    _checks.one_of("norm", norm, ("operator", "kernel"))
    _checks.one_of("profile", profile, ("paper", "authors"))
    _checks.one_of("recipe", recipe, ("paper", "fast"))
    if recipe == "fast" and name not in _FAST:
        raise ValueError(f"{name} has no fast recipe; expected recipe paper, or one of {', '.join(_FAST)}")
    preset = replace((_FAST if recipe == "fast" else _TABLE)[name], norm=norm)
    if neuron == "if":
        preset = replace(preset, neuron=IF(preset.neuron.v_th))
    if n_steps is not None:
        preset = replace(preset, recipe=replace(preset.recipe, n_steps=n_steps))
    return as_authors(preset) if profile == "authors" else preset


def as_authors(preset: Preset) -> Preset:
    """A preset with all differences of the authors' program, see :func:`load`."""
    recipe = replace(preset.recipe, solver="broyden", max_iter=30, tol=1e-7, allow_unconverged=True)
    switches = authors.authors(len(preset.network.populations))
    return replace(preset, norm="kernel", profile=switches, recipe=recipe)
