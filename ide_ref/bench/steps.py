"""Training steps by stage, against the dense-equivalent time of the same step.

Source: what a stage contains in ``docs/performance.md``.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref.bench.dense import dense_equivalent, dense_forward, dense_rollout
from ide_ref.bench.machine import MATRIX, matrix_rate, median_seconds, most_threads
from ide_ref.datasets import DATASETS, Dataset, EventFrames, load
from ide_ref.implicit import Backward
from ide_ref.maps import freeze, read_out
from ide_ref.network import Network, Params
from ide_ref.presets import Preset
from ide_ref.simulation import simulate
from ide_ref.training.evaluation import load_batch, load_data
from ide_ref.training.loop import begin, generator
from ide_ref.training.schedule import learning_rate
from ide_ref.training.step import training_step


@dataclass(frozen=True)
class Timing:
    """Steps of one preset; times in seconds."""

    preset: str
    neuron: str
    dtype: str
    n_steps: int
    batch_size: int
    threads: int
    stages: dict[str, float]
    """Median of each stage."""
    step: float
    """Of a whole step, the median; then its extremes."""
    fastest: float
    slowest: float
    forward: float
    """Rollout and readout of a frozen network in evaluation mode, the median."""
    dense_rollout: float | None
    """:func:`~ide_ref.bench.dense.dense_rollout` on the same batch; None where BLAS has more threads than the kernels,
    or for spike trains."""
    dense_equivalent: float
    """D."""
    dense_forward: float
    """The forward pass with dense products at ``matrix_rate``, and nothing else."""
    matrix_rate: float
    """Floating-point operations per second of the float32 matrix product."""
    firing_rate: float
    """Spikes per neuron and step in the last step."""
    events_per_second: float
    """Synaptic events of the rollout: spikes times receivers."""
    sent_per_second: float
    """The events that the rollout sent for them, times receivers: fewer where spikes were predicted."""
    sweeps: float
    """Mean products with Jᵀ per step; T of backpropagation through time."""
    peak_mebibytes: float
    """Of the whole process up to these steps; what they are compared with comes later, and counts for later threads."""
    data: str
    """What the steps were run on."""

    @property
    def ratio(self) -> float:
        """Step time over D."""
        return self.step / self.dense_equivalent

    @property
    def forward_ratio(self) -> float:
        """Samples per second forward, over those of the dense products."""
        return self.dense_forward / self.forward

    @property
    def blas_ratio(self) -> float | None:
        """Samples per second forward, over those of the rollout with BLAS."""
        return None if self.dense_rollout is None else self.dense_rollout / self.forward

    @property
    def samples_per_second(self) -> float:
        """Trained samples per second."""
        return self.batch_size / self.step

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived figures, fit for JSON."""
        derived = ("ratio", "samples_per_second", "forward_ratio", "blas_ratio")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def find_data(preset: Preset, data_dir: str | None, source: str | None = None) -> Dataset:
    """The preset's data, or those asked for; the embedded digits, enlarged, where a preset's are not found."""
    try:
        return load_data(preset, data_dir=data_dir, limit=8192, source=source)
    except ValueError:
        if source or preset.recipe.dataset not in DATASETS or preset.recipe.input == "spikes":
            raise
    digits = load("digits")
    shape = preset.input_shape if len(preset.input_shape) == 3 else (1, 28, 28)
    rows = np.arange(shape[1]) * 8 // shape[1]
    columns = np.arange(shape[2]) * 8 // shape[2]

    def enlarge(x: NDArray | EventFrames) -> NDArray:
        return np.repeat(np.asarray(x)[:, :1, rows][:, :, :, columns], shape[0], axis=1)

    name = f"digits enlarged to {'x'.join(map(str, shape))}"
    return replace(digits, name=name, x_train=enlarge(digits.x_train), x_test=enlarge(digits.x_test))


def run(
    preset: Preset,
    *,
    data_dir: str | None = None,
    source: str | None = None,
    warm_up: int = 20,
    repeats: int = 10,
    seed: int = 0,
    threads: Sequence[int] = (),
    rate: float | None = None,
) -> list[Timing]:
    """Time training steps of a preset, after real training steps that bring it to its usual activity.

    ValueError for numbers of steps or of threads below 1, or of more threads than there are.

    Parameters
    ----------
    preset : Preset
        Its recipe says batch size, dtype, solver and tolerance.
    source : str, optional
        Data set in place of the recipe's.
    warm_up, repeats : int
        Steps not counted, and counted for each number of threads.
    threads : sequence of int
        Of the kernels, a timing for each; all there are by default.
    rate : float, optional
        Matrix-product rate measured before.
    """
    import numba

    if warm_up < 1 or repeats < 1:
        raise ValueError(f"warm_up is {warm_up} and repeats {repeats}; expected at least 1")
    most = most_threads()
    threads = tuple(threads) or (most,)
    if not all(_checks.is_whole(n) and n <= most for n in threads):
        raise ValueError(f"threads is {threads!r}; expected whole numbers from 1 to {most}")
    rate = matrix_rate() if rate is None else rate
    data = find_data(preset, data_dir, source)
    # A solver that stops early is timed, too.
    preset = replace(preset, recipe=replace(preset.recipe, allow_unconverged=True))
    state = begin(preset, seed)
    order = generator(seed, "order").permutation(len(data.y_train))
    size = preset.recipe.batch_size
    found: list[Timing] = []
    params, velocity, step = state.params, state.velocity, 0
    before = numba.get_num_threads()
    try:
        for n_threads in threads:
            numba.set_num_threads(n_threads)
            laps: list[_Laps] = []
            for _ in range((0 if found else warm_up) + repeats):
                first = step * size % max(1, len(order) - size + 1)
                x, y = load_batch(preset, data, "train", order[first : first + size])
                params, velocity, timed = _timed_step(preset, params, velocity, x, y, seed, step)
                step += 1
                laps.append(timed)
            found.append(_timing(preset, params, x, laps[-repeats:], n_threads, rate, data.name))
    finally:
        numba.set_num_threads(before)
    return found


@dataclass(frozen=True)
class _Laps:
    """Seconds of each stage of one step, and what the step did in them."""

    seconds: dict[str, float]
    n_spikes: NDArray[np.int64]
    n_events: NDArray[np.int64]
    n_products: int


def _timed_step(
    preset: Preset, params: Params, velocity: Params, x: NDArray, y: NDArray, seed: int, step: int
) -> tuple[Params, Params, _Laps]:
    """Parameters and velocity after a training step, and its laps; the rest of it is let go."""
    seconds: dict[str, float] = {}
    lr = learning_rate(preset.recipe.lr, epoch=0, step=step, warmup_steps=preset.recipe.warmup_steps)
    rng = generator(seed, "batch", 0, step)
    began = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[stage] = now - began
        began = now

    done = training_step(preset, params, velocity, x, y, rate=lr, rng=rng, lap=lap)
    rates, back = done.rates, done.backward
    n_products = back.solution.n_products if isinstance(back, Backward) else rates.n_steps
    return done.params, done.velocity, _Laps(seconds, rates.n_spikes, rates.n_events, n_products)


def _timing(
    preset: Preset, params: Params, x: NDArray, laps: Sequence[_Laps], threads: int, rate: float, data: str
) -> Timing:
    # Before the same is done by dense products, whose arrays are larger.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    totals = [sum(lap.seconds.values()) for lap in laps]
    network, n_steps = preset.network, preset.recipe.n_steps
    n_spikes, n_events = laps[-1].n_spikes, laps[-1].n_events
    frozen = freeze(preset.network, params)
    forward = median_seconds(lambda: read_out(frozen, simulate(frozen, x, n_steps)), len(laps))
    stages = {name: float(np.median([lap.seconds[name] for lap in laps])) for name in laps[0].seconds}
    dense = None
    if threads == most_threads() and not network.is_spike_input(x):
        dense = median_seconds(lambda: dense_rollout(frozen, x, n_steps), 1 if forward > 1 else len(laps))
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
        sweeps=float(np.mean([lap.n_products for lap in laps])),
        peak_mebibytes=peak,
        data=data,
    )


def _events(network: Network, sent: NDArray) -> float:
    """Synaptic events of a rollout: each population's spikes, or events, times the mean receivers of its neurons."""
    total = 0.0
    for c, (source, _) in zip(network.connections, network.edges, strict=True):
        if source >= 0:
            total += float(sent[:, source].sum()) * c.synapse.n_multiplications / c.synapse.n_in
    return total


COLUMNS = """\
dtype        of all arrays
thr          threads of the kernels
step ms      a whole training step, the median
D ms         the same step as dense products at the rate of the matrix product below
ratio        step over D
smp/s        samples trained per second
fwd ms       rollout and readout of the trained network in evaluation mode
fwd/dense    its samples per second over those of dense products at that rate
fwd/BLAS     the same over those of the rollout written with BLAS; empty where that was not timed
events/s     spikes of the rollout times their receivers, per second of it
sweeps       products with the transposed Jacobian for a gradient; T through time
peak MiB     memory of the process up to the last step
ms:          median of each stage; a step is the sum of its stages, medians need not add up; loading is in neither"""
"""What the table shows, in words."""


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
            f"{t.events_per_second:>10.2e}{t.sweeps:>7.1f}{t.peak_mebibytes:>9.0f}"
        )
        stages = "  ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in t.stages.items())
        lines.append(
            f"  ms: {stages}\n  step {1e3 * t.fastest:.1f} to {1e3 * t.slowest:.1f} ms; "
            f"firing rate {t.firing_rate:.4f}; {t.sent_per_second:.2e} events/s sent; on {t.data}"
        )
    if timings:
        lines.append(f"matrix product (float32, n = {MATRIX}): {timings[0].matrix_rate / 1e9:.0f} GFLOP/s")
    found = ", ".join(f"{rate / 1e9:.1f} from weights of {size}" for size, rate in limits.items())
    lines.append(f"10⁹ synaptic events per second and thread at most (float32): {found}")
    return "\n".join([*lines, "", COLUMNS])
