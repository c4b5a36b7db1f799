"""Every timing: training steps by stage, against the dense-equivalent time of the same step.

The unit is D = 2·MACs·B·(T + 31)/r, plus the drive and its gradient once each, with MACs those of one feedback
sweep and r the machine's float32 matrix-product rate, measured in the same run: what the method costs with dense
products and 30 backward sweeps.
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._kernels import events as _events_kernel
from ide_ref._kernels import memory
from ide_ref.continuous import simulate_continuous
from ide_ref.datasets import Dataset, EventFrames, load
from ide_ref.equilibrium import linearise
from ide_ref.implicit import hebbian, solve_beta
from ide_ref.maps import Frozen, freeze, read_out
from ide_ref.network import INPUT, Network, Params
from ide_ref.neurons import IF
from ide_ref.presets import Preset
from ide_ref.simulation import simulate
from ide_ref.structure import build
from ide_ref.training.evaluation import load_batch
from ide_ref.training.loop import begin, generator
from ide_ref.training.losses import cross_entropy
from ide_ref.training.schedule import learning_rate
from ide_ref.training.sgd import SGD

STAGES = ("freeze", "rollout", "readout", "linearise", "solve", "hebbian", "update")

MATRIX = 2048
"""Size of the square product whose rate stands for the machine."""


@dataclass(frozen=True)
class Timing:
    """Steps of one preset.

    Attributes
    ----------
    preset, neuron, dtype : str
    n_steps, batch_size, threads : int
    stages : dict of str to float
        Median seconds of each stage.
    step, fastest, slowest : float
        Seconds of a whole step: median and extremes.
    forward : float
        Median seconds of the rollout and the readout of a frozen network, evaluation mode.
    dense_rollout : float or None
        Seconds of :func:`dense_rollout` on the same batch; None where the kernels have fewer threads than BLAS, or for
        spike trains.
    dense_equivalent : float
        D, seconds.
    dense_forward : float
        Seconds that the forward pass takes with dense products at ``matrix_rate``, and nothing else.
    matrix_rate : float
        Multiply-adds a second times two of the float32 matrix product.
    firing_rate : float
        Spikes a neuron and step in the last step.
    events_per_second : float
        Synaptic events of the rollout: spikes times receivers.
    sent_per_second : float
        The events that the rollout sent for them, times receivers: fewer where spikes were expected.
    sweeps : float
        Mean products with Jᵀ a step.
    peak_mebibytes : float
        Of the whole process so far.
    data : str
        What the steps were run on.
    """

    preset: str
    neuron: str
    dtype: str
    n_steps: int
    batch_size: int
    threads: int
    stages: dict[str, float]
    step: float
    fastest: float
    slowest: float
    forward: float
    dense_rollout: float | None
    dense_equivalent: float
    dense_forward: float
    matrix_rate: float
    firing_rate: float
    events_per_second: float
    sent_per_second: float
    sweeps: float
    peak_mebibytes: float
    data: str

    @property
    def ratio(self) -> float:
        """Step time over D."""
        return self.step / self.dense_equivalent

    @property
    def forward_ratio(self) -> float:
        """Samples a second forward, over those of the dense products."""
        return self.dense_forward / self.forward

    @property
    def blas_ratio(self) -> float | None:
        """Samples a second forward, over those of the rollout with BLAS."""
        return None if self.dense_rollout is None else self.dense_rollout / self.forward

    @property
    def samples_per_second(self) -> float:
        """Trained samples a second."""
        return self.batch_size / self.step

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived figures, fit for JSON."""
        derived = ("ratio", "samples_per_second", "forward_ratio", "blas_ratio")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, versions."""
    import numba
    import scipy

    from ide_ref import __version__
    from ide_ref.training.loop import cpu_model

    return {
        "cpu": cpu_model(),
        "threads": most_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "numba": numba.__version__,
        "ide_ref": __version__,
    }


def most_threads() -> int:
    """Threads that the kernels, and the matrix product, have."""
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def matrix_rate() -> float:
    """Floating-point operations a second of NumPy's float32 matrix product, n = 2048."""
    a = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), dtype=np.float32)
    return 2.0 * MATRIX**3 / median_seconds(lambda: a @ a, 7)


EVENT_LIMITS = {"16 KiB": 64, "256 KiB": 1024, "4 MiB": 16384}
"""Weights of so many rows of 64 numbers: they fit the first-level cache, the second, and neither."""


def event_limits() -> dict[str, float]:
    """Synaptic events a second of one thread where nothing but weights is read, by the size of the weights.

    The kernel of the rollout, on 40 events in every output position.
    """
    rng = np.random.default_rng(0)
    n_positions, n_events, width = 256, 40, 64
    positions = np.arange(n_positions, dtype=np.int32)
    runs = np.stack([positions, positions + 1, -positions], axis=1)[None]
    first = (np.arange(n_positions + 1, dtype=np.int64) * n_events)[None]
    ones = np.ones(n_positions * n_events, np.float32)
    places = np.zeros(1, np.int64)
    out = memory.empty((n_positions, width), np.float32)
    out[:] = 0
    found = {}
    for name, n_rows in EVENT_LIMITS.items():
        weights = memory.empty(n_rows * width, np.float32)
        weights[:] = 0
        channels = np.sort(rng.integers(0, n_rows, (n_positions, n_events)), axis=1)
        cells = (channels + positions[:, None] * n_rows).astype(np.uint32).ravel()
        call = partial(
            _events_kernel.propagate, runs, False, 0, n_positions, first, n_rows, cells, ones, 1, n_rows, weights, 0,
            width, out.reshape(-1), places,
        )  # fmt: skip
        seconds = median_seconds(call, 101)
        found[name] = n_positions * n_events * width / seconds
    return found


def dense_forward(network: Network, n_steps: int, batch_size: int, rate: float) -> float:
    """Seconds of T dense sweeps and the drive at the rate of a matrix product."""
    products = (c.synapse.n_multiplications * (1 if c.source == INPUT else n_steps) for c in network.connections)
    return 2.0 * batch_size * sum(products) / rate


def dense_equivalent(network: Network, n_steps: int, batch_size: int, rate: float, *, spike_input: bool) -> float:
    """D in seconds: dense products for T forward and 31 backward sweeps, the drive and its gradient."""
    sweep = drive = 0
    for c in network.connections:
        if c.source == INPUT:
            drive += c.synapse.n_multiplications
        else:
            sweep += c.synapse.n_multiplications
    drives = n_steps + 1 if spike_input else 2
    return 2.0 * batch_size * (sweep * (n_steps + 31) + drive * drives) / rate


COLUMNS_BYTES = 16 << 20
"""Of the copies of spikes that one product of :func:`dense_rollout` reads, about: they stay in the caches."""


def dense_rollout(frozen: Frozen, x: NDArray, n_steps: int) -> NDArray:
    """Average rates a[T], (B, n), from (STEP) with dense products: what a rollout costs that does not use sparsity.

    For each connection and step what every output position sees is copied side by side, some samples at a time, and
    multiplied by the weights in NumPy's matrix product, that is in BLAS. Static input, and connections with weights.
    """
    net, dtype, n_batch = frozen.network, frozen.dtype, len(x)
    drive = frozen.drive(x, frozen.constants(n_batch, with_input=False))
    maps = []
    for c, (source, target) in zip(frozen.maps, net.ends, strict=True):
        if source >= 0:
            c_in, c_out = c.synapse.channels
            n_positions = net.populations[source].size // c_in
            first, last = c.synapse.runs.fine[:, :, :2].transpose(2, 1, 0)
            # Of a position that is none, the row of zeros behind the others.
            seen = np.where(first < last, first, n_positions).ravel()
            weights = np.ascontiguousarray(c.folded_taps.reshape(-1, c_out))
            sent = np.zeros((n_batch, n_positions + 1, c_in), dtype)
            share = max(1, min(n_batch, COLUMNS_BYTES // (seen.size * c_in * dtype.itemsize)))
            columns = np.empty((share, seen.size, c_in), dtype)
            product = np.empty((share, c.synapse.n_out), dtype)
            maps.append((source, target, seen, weights, c.keep, sent, columns, product))
    v, a = np.zeros_like(drive), np.zeros_like(drive)
    leak, v_th = dtype.type(net.neuron.leak), dtype.type(net.neuron.v_th)
    for t in range(n_steps):
        v *= leak
        v += drive
        for population in range(len(net.populations)):
            place = net.place(population)
            here = v[:, place]
            for _, target, seen, weights, keep, sent, columns, product in maps:
                for first in range(0, n_batch if target == population else 0, len(columns)):
                    part = slice(first, first + len(columns))
                    n = len(sent[part])
                    read, found = columns[:n], product[:n]
                    np.take(sent[part], seen, axis=1, out=read, mode="clip")
                    np.matmul(read.reshape(-1, len(weights)), weights, out=found.reshape(-1, weights.shape[1]))
                    if keep is not None:
                        found *= keep[part]
                    here[part] += found
            fired = here >= v_th
            here -= fired * v_th
            a[:, place] += fired * dtype.type(net.neuron.leak ** (n_steps - 1 - t))
            for source, _, _, _, _, sent, _, _ in maps:
                if source == population:
                    sent[:, :-1] = fired.reshape(n_batch, -1, sent.shape[2])
    return a / dtype.type(net.neuron.total_weight(n_steps))


def find_data(preset: Preset, data_dir: str | None) -> Dataset:
    """The preset's data where it is found; otherwise the embedded digits, enlarged to its size."""
    n_frames = preset.recipe.n_steps if preset.recipe.input == "spikes" else None
    try:
        return load(preset.recipe.dataset, data_dir=data_dir, limit=8192, n_frames=n_frames)
    except ValueError:
        if preset.recipe.input == "spikes":
            raise
    digits = load("digits")
    shape = preset.input_shape if len(preset.input_shape) == 3 else (1, 28, 28)
    rows = np.arange(shape[1]) * 8 // shape[1]
    columns = np.arange(shape[2]) * 8 // shape[2]

    def enlarge(x: NDArray | EventFrames) -> NDArray:
        return np.repeat(np.asarray(x)[:, :1, rows][:, :, :, columns], shape[0], axis=1)

    return replace(
        digits,
        name=f"digits enlarged to {'x'.join(map(str, shape))}",
        x_train=enlarge(digits.x_train),
        x_test=enlarge(digits.x_test),
    )


def run(
    preset: Preset,
    *,
    data_dir: str | None = None,
    warm_up: int = 20,
    repeats: int = 10,
    seed: int = 0,
    threads: Sequence[int] = (),
    rate: float | None = None,
) -> list[Timing]:
    """Time training steps of a preset, after real training steps that bring it to its usual activity.

    Parameters
    ----------
    preset : Preset
        Its recipe says batch size, dtype, solver and tolerance.
    data_dir : str, optional
    warm_up, repeats : int
        Steps not counted, and counted for each number of threads.
    seed : int
    threads : sequence of int
        Of the kernels, one after another; all there are by default.
    rate : float, optional
        Matrix-product rate measured before.

    Returns
    -------
    list of Timing
        One for each number of threads.
    """
    import numba

    if warm_up < 1 or repeats < 1:
        raise ValueError(f"warm_up is {warm_up} and repeats {repeats}; expected at least 1")
    most = most_threads()
    threads = tuple(threads) or (most,)
    if not all(_checks.is_whole(n) and n <= most for n in threads):
        raise ValueError(f"threads is {threads!r}; expected whole numbers from 1 to {most}")
    rate = matrix_rate() if rate is None else rate
    data = find_data(preset, data_dir)
    state = begin(preset, seed)
    order = generator(seed, "order").permutation(len(data.y_train))
    size = preset.recipe.batch_size
    found: list[Timing] = []
    params: Params = state.params
    velocity: Mapping[str, NDArray] = state.velocity
    step = 0
    before = numba.get_num_threads()
    try:
        for n_threads in threads:
            numba.set_num_threads(n_threads)
            records: list[dict[str, float]] = []
            sweeps: list[int] = []
            for _ in range((0 if found else warm_up) + repeats):
                first = step * size % max(1, len(order) - size + 1)
                x, y = load_batch(preset, data, "train", order[first : first + size])
                times, params, velocity, counts, products = _step(preset, params, velocity, x, y, seed, step)
                step += 1
                records.append(times)
                sweeps.append(products)
            found.append(
                _timing(preset, params, x, records[-repeats:], sweeps[-repeats:], counts, n_threads, rate, data.name)
            )
    finally:
        numba.set_num_threads(before)
    return found


def _timing(
    preset: Preset,
    params: Params,
    x: NDArray,
    records: list[dict[str, float]],
    sweeps: list[int],
    counts: tuple[NDArray, NDArray],
    threads: int,
    rate: float,
    data: str,
) -> Timing:
    totals = [sum(r.values()) for r in records]
    network, n_steps = preset.network, preset.recipe.n_steps
    n_spikes, n_events = counts
    frozen = freeze(network, params)
    forward = median_seconds(lambda: read_out(frozen, simulate(frozen, x, n_steps)), len(records))
    stages = {name: float(np.median([r[name] for r in records])) for name in STAGES}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    dense = None
    if threads == most_threads() and not network.is_train(x):
        dense = median_seconds(lambda: dense_rollout(frozen, x, n_steps), 1 if forward > 1 else len(records))
    return Timing(
        preset=preset.name,
        neuron=preset.neuron.name,
        dtype=preset.recipe.dtype,
        n_steps=n_steps,
        batch_size=len(x),
        threads=threads,
        stages=stages,
        step=float(np.median(totals)),
        fastest=min(totals),
        slowest=max(totals),
        forward=forward,
        dense_rollout=dense,
        dense_equivalent=dense_equivalent(network, n_steps, len(x), rate, spike_input=preset.recipe.input == "spikes"),
        dense_forward=dense_forward(network, n_steps, len(x), rate),
        matrix_rate=rate,
        firing_rate=float(n_spikes.sum()) / (len(x) * network.state_size * n_steps),
        events_per_second=_events(network, n_spikes) / stages["rollout"],
        sent_per_second=_events(network, n_events) / stages["rollout"],
        sweeps=float(np.mean(sweeps)),
        peak_mebibytes=peak,
        data=data,
    )


def _events(network: Network, sent: NDArray) -> float:
    """Synaptic events of a rollout: each population's spikes, or events, times the mean receivers of its neurons."""
    total = 0.0
    for c, (source, _) in zip(network.connections, network.ends, strict=True):
        if source >= 0:
            total += float(sent[:, source].sum()) * c.synapse.n_multiplications / c.synapse.n_in
    return total


def _step(
    preset: Preset, params: Params, velocity: Mapping[str, NDArray], x: NDArray, y: NDArray, seed: int, step: int
) -> tuple[dict[str, float], Params, Mapping[str, NDArray], tuple[NDArray, NDArray], int]:
    """One training step, stage by stage: the calls of ``implicit.backward`` with a clock between them."""
    recipe, network = preset.recipe, preset.network
    times: dict[str, float] = {}
    began = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal began
        now = time.perf_counter()
        times[stage] = now - began
        began = now

    rng = generator(seed, "batch", 0, step)
    frozen = freeze(network, params, x, training=True, rng=rng)
    lap("freeze")
    rates = simulate(frozen, x, recipe.n_steps).without_potentials()
    lap("rollout")
    _, d_logits = cross_entropy(read_out(frozen, rates), y)
    g, grads = frozen.read_out_pull_back(rates, d_logits)
    lap("readout")
    at = linearise(frozen, rates.a, frozen.drive(rates.x_mean))
    lap("linearise")
    _, delta, solution = solve_beta(
        at, g, solver=recipe.solver, tol=recipe.tol, max_iter=recipe.max_iter, allow_unconverged=True
    )
    # As in ``implicit.backward``: what is no longer needed goes before the outer products come.
    del g
    lap("solve")
    found, statistics = hebbian(at, delta, rates.x_mean)
    lap("hebbian")
    optimiser = SGD(momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    changed = {**params, **frozen.statistics, **statistics}
    lr = learning_rate(recipe.lr, epoch=0, step=step, warmup_steps=recipe.warmup_steps)
    params, velocity = optimiser.step(changed, velocity, {**grads, **found}, rate=lr)
    params = network.project(params)
    lap("update")
    return times, params, velocity, (rates.n_spikes, rates.n_events), solution.n_products


def table(timings: list[Timing], limits: Mapping[str, float]) -> str:
    """Timings and what ``event_limits`` found, as text."""
    lines = [
        f"{'preset':<20}{'dtype':>8}{'thr':>4}{'step ms':>10}{'D ms':>9}{'ratio':>7}{'smp/s':>9}{'fwd ms':>9}"
        f"{'fwd/dense':>10}{'fwd/BLAS':>9}{'events/s':>10}{'sweeps':>7}{'peak MiB':>9}"
    ]
    for t in timings:
        lines.append(
            f"{t.preset:<20}{t.dtype:>8}{t.threads:>4}{1e3 * t.step:>10.1f}{1e3 * t.dense_equivalent:>9.1f}"
            f"{t.ratio:>7.2f}{t.samples_per_second:>9.0f}{1e3 * t.forward:>9.1f}"
            f"{t.forward_ratio:>10.2f}{'' if t.blas_ratio is None else format(t.blas_ratio, '.2f'):>9}"
            f"{t.events_per_second:>10.2e}"
            f"{t.sweeps:>7.1f}{t.peak_mebibytes:>9.0f}"
        )
        stages = "  ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in t.stages.items())
        lines.append(
            f"  ms: {stages}\n  step {1e3 * t.fastest:.1f} to {1e3 * t.slowest:.1f} ms; "
            f"firing rate {t.firing_rate:.4f}; {t.sent_per_second:.2e} events/s sent; on {t.data}"
        )
    if timings:
        lines.append(f"matrix product (float32, n = {MATRIX}): {timings[0].matrix_rate / 1e9:.0f} GFLOP/s")
    found = ", ".join(f"{rate / 1e9:.1f} from weights of {size}" for size, rate in limits.items())
    lines.append(f"10⁹ synaptic events a second a thread at most (float32): {found}")
    return "\n".join(lines)


# --- continuous time --------------------------------------------------------------------------------

CONTINUOUS = ((400, False), (12_544, True))
"""Sizes of fashion-mnist-400 and of mnist-64c5, and whether the feedback is a convolution."""


@dataclass(frozen=True)
class ContinuousTiming:
    """Event-driven runs of one network.

    Attributes
    ----------
    structure : str
    n_neurons : int
    tau : float
        τ_m; infinite for IF.
    delay : float
        Δ.
    seed : int
        Of weights and input.
    t_end : float
        Simulated time.
    n_spikes, n_deliveries : int
        Of one run: spikes, and receivers reached by them.
    seconds, fastest, slowest : float
        Of a whole call: median and extremes.
    """

    structure: str
    n_neurons: int
    tau: float
    delay: float
    seed: int
    t_end: float
    n_spikes: int
    n_deliveries: int
    seconds: float
    fastest: float
    slowest: float

    @property
    def spikes_per_second(self) -> float:
        """Median."""
        return self.n_spikes / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """All fields and the rate, fit for JSON."""
        return {**asdict(self), "spikes_per_second": self.spikes_per_second}


def continuous_speed(
    n_neurons: int,
    *,
    convolution: bool = False,
    tau: float = np.inf,
    delay: float = 1.0,
    n_spikes: int = 100_000,
    repeats: int = 10,
    seed: int = 0,
) -> ContinuousTiming:
    """Time ``simulate_continuous`` on a freshly drawn network with feedback, kernels compiled.

    Parameters
    ----------
    n_neurons : int
        n (Fn) over 784 inputs, or 64C5s (F64C5) over an image twice as wide as its map, 64 neurons a pixel.
    convolution : bool
        Which of both.
    tau, delay : float
        τ_m, infinite for IF, and Δ.
    n_spikes : int
        About how many in a run.
    repeats : int
        Runs counted; one more comes before.
    seed : int
        Of weights and input.
    """
    width = round((n_neurons / 64) ** 0.5)
    if convolution and n_neurons != 64 * width**2:
        raise ValueError(f"n_neurons is {n_neurons}; expected 64 times a square for 64C5s (F64C5)")
    structure = "64C5s (F64C5)" if convolution else f"{n_neurons} (F{n_neurons})"
    shape = (1, 2 * width, 2 * width) if convolution else (784,)
    network = build(structure, input_shape=shape, n_classes=10, neuron=IF())
    rng = np.random.default_rng(seed)
    frozen = freeze(network, network.init(rng))
    x = rng.standard_normal(shape)
    # The first run finds out how long so many spikes take; no time is asked for that it could reach.
    found = simulate_continuous(frozen, x, np.array([1e9]), tau=tau, delay=delay, max_events=n_spikes)
    times = np.array([found.t_end])
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = simulate_continuous(frozen, x, times, tau=tau, delay=delay, max_events=2 * n_spikes)
        seconds.append(time.perf_counter() - began)
    return ContinuousTiming(
        structure=structure,
        n_neurons=n_neurons,
        tau=tau,
        delay=delay,
        seed=seed,
        t_end=found.t_end,
        n_spikes=len(found.spike_times),
        n_deliveries=found.n_deliveries,
        seconds=float(np.median(seconds)),
        fastest=min(seconds),
        slowest=max(seconds),
    )


def continuous_table(timings: list[ContinuousTiming]) -> str:
    """Timings as text."""
    lines = [
        f"{'structure':<16}{'neurons':>8}{'tau':>7}{'time':>9}{'spikes':>9}{'spikes/s':>10}{'slowest':>10}{'fastest':>10}"
        f"{'receivers/s':>13}"
    ]
    for t in timings:
        lines.append(
            f"{t.structure:<16}{t.n_neurons:>8,}{t.tau:>7.3g}{t.t_end:>9.4g}{t.n_spikes:>9,}"
            f"{t.spikes_per_second:>10.3g}{t.n_spikes / t.slowest:>10.3g}{t.n_spikes / t.fastest:>10.3g}"
            f"{t.n_deliveries / t.seconds:>13.3g}"
        )
    return "\n".join(lines)
