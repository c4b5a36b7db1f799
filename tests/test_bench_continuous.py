"""Spikes per second in continuous time: what is timed, and how the command tells it."""

import json
import math

import pytest

from ide_ref.bench import continuous
from ide_ref.cli import main


@pytest.mark.parametrize(("n", "convolution"), [(20, False), (256, True)])
@pytest.mark.parametrize("tau", [math.inf, 20.0])
def test_the_timed_run_is_the_one_described(n, convolution, tau):
    timing = continuous.continuous_speed(n, convolution=convolution, tau=tau, n_spikes=300, repeats=3, seed=1)
    assert timing.structure == ("64C5s (F64C5)" if convolution else "20 (F20)")
    assert (timing.n_neurons, timing.tau, timing.delay, timing.seed) == (n, tau, 1.0, 1)
    # All spikes of the last instant, and no others.
    assert 300 <= timing.n_spikes < 310
    assert timing.fastest <= timing.seconds <= timing.slowest
    assert timing.spikes_per_second == timing.n_spikes / timing.seconds
    assert timing.to_dict()["spikes_per_second"] == timing.spikes_per_second
    receivers = timing.n_deliveries / timing.n_spikes
    # Most have arrived: dense ones at all neurons, those of a map of 2 by 2 at its 4 pixels.
    assert 0.8 * n < receivers <= n
    again = continuous.continuous_speed(n, convolution=convolution, tau=tau, n_spikes=300, repeats=1, seed=1)
    assert (again.n_spikes, again.t_end) == (timing.n_spikes, timing.t_end)
    other = continuous.continuous_speed(n, convolution=convolution, tau=tau, n_spikes=300, repeats=1, seed=2)
    assert other.t_end != timing.t_end


def test_a_map_is_square():
    with pytest.raises(ValueError, match="n_neurons is 400; expected 64 times a square"):
        continuous.continuous_speed(400, convolution=True)


def test_the_command_prints_a_table_or_one_document(capsys, monkeypatch):
    monkeypatch.setattr(continuous, "CONTINUOUS", ((20, False), (64, True)))
    assert main(["bench", "--continuous", "--steps", "1", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "cpu" in found["machine"]
    assert [(t["n_neurons"], t["seed"]) for t in found["continuous"]] == [(20, 3), (20, 3), (64, 3), (64, 3)]
    # IF has no time constant; the leak of one unit of time is 0.95.
    assert [t["tau"] for t in found["continuous"][::2]] == [None, None]
    assert math.exp(-1 / found["continuous"][1]["tau"]) == pytest.approx(0.95)
    assert main(["bench", "--continuous", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["structure", "neurons", "tau", "time", "spikes"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["20 (F20)"] * 2 + ["64C5s (F64C5)"] * 2
