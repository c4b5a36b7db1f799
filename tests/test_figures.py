import struct

import numpy as np
import pytest

from ide_ref import LIF, build, error_bound, figures, find_equilibrium, freeze, simulate
from ide_ref.verify import check_fixed_point


def history(n, accuracy=lambda k: 1 - 0.5 / (k + 1)):
    return [
        {
            "epoch": k + 1,
            "lr": 0.05 if k < n // 2 else 0.005,
            **{f"{split}_loss": 1 / (k + 1) for split in ("train", "test")},
            **{f"{split}_accuracy": accuracy(k) for split in ("train", "test")},
        }
        for k in range(n)
    ]


# Perfect accuracy has no place on a logarithmic axis of errors; a single epoch has no line.
@pytest.mark.parametrize("lines", [history(1), history(30), history(3, lambda k: 1.0), history(4, lambda k: k / 3)])
def test_curves_of_any_training(tmp_path, lines):
    figures.training_curves(lines, title="digits (LIF)", path=tmp_path / "curves.png")
    head = (tmp_path / "curves.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", head[16:])) > 400


def visible(ax):
    """Labels of the ticks inside the axes, as they are drawn."""
    inside = []
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        inside.append([t.label1.get_text() for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()])
    return inside


@pytest.mark.parametrize(
    ("rates", "marked"),
    [
        ([0.1] * 2 + [0.01] * 2 + [0.001], [2, 4]),
        ([0.1, 0.01, 0.01], [1]),
        ([0.1, 0.1, 0.06, 0.06], []),
        # Under one cycle the last epochs fall below half one after the other, and nothing happens.
        ([0.02, 0.1, 0.05, 0.02, 0.004], []),
        ([0.1, 0.01], []),
        ([0.1], []),
    ],
)
def test_drops_of_the_learning_rate_are_marked(rates, marked):
    lines = [line | {"lr": lr} for line, lr in zip(history(len(rates)), rates, strict=True)]
    for ax in figures.training_curves(lines, title="digits").axes:
        assert [line.get_xdata()[0] - 0.5 for line in ax.lines if line.get_linestyle() == ":"] == marked


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they were saved."""
    kept = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, *paths: (save(figure, *paths), kept.append(figure)))
    return kept


def test_a_single_epoch_is_one_tick_and_its_words_are_inside(tmp_path, drawn):
    from matplotlib.text import Text

    lines = history(1, lambda k: 0.0)
    figures.training_curves(lines, title="digits", path=tmp_path / "curves.png")
    left, right = drawn[0].axes
    assert visible(left)[0] == visible(right)[0] == ["1"]
    # The name of the right picture says its lowest error, and does not reach over the picture's edge.
    assert right.get_title(loc="left") == "test error 100.00% at the end, lowest 100.00% (dot)"
    (words,) = right.findobj(lambda artist: isinstance(artist, Text) and "lowest" in artist.get_text())
    assert words.get_window_extent().x1 <= right.figure.bbox.x1


def test_errors_that_hardly_fall_have_numbers_beside_them(tmp_path, drawn):
    lines = history(2, lambda k: [0.34, 0.51][k])
    figures.training_curves(lines, title="digits", path=tmp_path / "curves.png")
    assert {"50", "60"} <= set(visible(drawn[0].axes[1])[1])


@pytest.mark.parametrize(("n_steps", "few"), [(1, True), (7, True), (600, False)])
def test_a_short_run_is_points_with_numbers_beside_it(tmp_path, drawn, n_steps, few):
    times = np.unique(np.geomspace(1, n_steps, 100).astype(int))
    error = 3.0 / times[None]
    panel = {"times": times, "error": error, "one_step": 1.5 * error, "iterated": 2 * error}
    panel |= {"limit": 5 * error[0], "slope": -1.0 if n_steps > 40 else np.nan, "slope_from": 1}
    figures.convergence([panel | {"name": n} for n in ("IF", "LIF")], title="a", paths=[tmp_path / "c.png"])
    for ax in drawn[0].axes:
        # A line of one point without a marker would be an empty picture.
        assert {line.get_marker() for line in ax.lines[:3]} == {"o" if few else "None"}
        assert min(map(len, visible(ax))) >= (1 if n_steps == 1 else 2)
    titles = [ax.get_title(loc="left") for ax in drawn[0].axes]
    assert titles == ["IF" if few else "IF: slope −1.00 from t = 1 on", "LIF"]


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_same_numbers_make_the_same_file_and_no_global_figure(tmp_path, ending, begins):
    import matplotlib.pyplot as plt

    for name in ("a", "b"):
        figures.training_curves(history(5), title="digits", path=tmp_path / f"{name}.{ending}")
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(begins)
    assert not plt.get_fignums()


def test_a_figure_is_drawn_into_given_axes_and_no_file_is_written_unasked(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert figures.training_curves(history(5), title="digits", ax=axes) is figure
    assert all(ax.lines for ax in axes)
    assert isinstance(figures.training_curves(history(5), title="digits"), Figure)
    with pytest.raises(ValueError, match="ax has 1 axes; expected 2, one per panel"):
        figures.training_curves(history(5), title="digits", ax=axes[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_remainders_are_drawn_by_what_they_are(share):
    b = np.array([1.0, -2.0])
    report = check_fixed_point(
        lambda z, x, theta: 0.5 * np.tanh(z) + theta["b"],
        np.zeros(2), {"b": b}, None, {"b": share * np.ones(2)}, loss=lambda z: np.sum(z - 0.5 * np.tanh(z)),
    )  # fmt: skip
    assert report.verdict == ("right" if share == 1 else "wrong")
    (ax,) = figures.remainders(report, title="a layer").axes
    found = [text.get_text() for text in ax.get_legend().get_texts()]
    assert found == ["without the gradient", "with the gradient" + ", wrong" * (share < 1), "rounding"]
    assert ax.get_title("left") == f"a layer: {report.verdict}"


@pytest.fixture(scope="module")
def run():
    """A recorded run of pictures, its input and its bounds."""
    network = build("2C3-2C3 (F2C3)", input_shape=(1, 4, 4), n_classes=2, neuron=LIF(0.9))
    frozen = freeze(network, network.init(np.random.default_rng(0)))
    x = np.random.default_rng(1).random((2, 1, 4, 4))
    rates = simulate(frozen, x, 12, record=True)
    return frozen, x, rates


def test_a_raster_has_a_dot_for_each_spike(run):
    _, _, rates = run
    (ax,) = figures.raster(rates, sample=1).axes
    drawn = np.concatenate([line.get_xydata() for line in ax.lines]).astype(int)
    s = rates.recording.s[1]
    assert len(drawn) == s.sum() > 0
    assert sorted(np.bincount(drawn[:, 0], minlength=13)[1:]) == sorted(s.sum(axis=1))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a1", "a2"]


def test_rates_over_time_end_where_the_rates_are_and_aim_at_the_equilibrium(run):
    frozen, x, rates = run
    star = find_equilibrium(frozen, x)
    (ax,) = figures.rates_over_time(rates, "a1", equilibrium=star, n_neurons=3).axes
    lasts = [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata()) == 12]
    a = rates.of("a1")[0].ravel()
    assert lasts == pytest.approx(np.sort(a)[[0, (a.size - 1) // 2, -1]], abs=1e-12)
    assert len(ax.lines) == 6


def test_the_distance_of_any_network_is_drawn_beside_its_bounds(run, tmp_path):
    frozen, x, rates = run
    figure = figures.distance(error_bound(frozen, x, rates), title="mine", path=tmp_path / "d.svg")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == "‖a[t] − a*‖, observed"
    assert "limit error at most, (FLOOR)" in labels
    assert (tmp_path / "d.svg").exists()


def test_what_was_not_recorded_cannot_be_drawn(run):
    frozen, x, _ = run
    with pytest.raises(ValueError, match="expected one from simulate"):
        figures.raster(simulate(frozen, x, 3))
