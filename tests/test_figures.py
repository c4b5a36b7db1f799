import struct

import pytest

from ide_ref import figures


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


def test_the_same_numbers_make_the_same_file(tmp_path):
    for ending in ("png", "svg"):
        for name in ("a", "b"):
            figures.training_curves(history(5), title="digits", path=tmp_path / f"{name}.{ending}")
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
        assert first == second


def test_no_global_figure_is_made(tmp_path):
    import matplotlib.pyplot as plt

    figures.training_curves(history(5), title="digits", path=tmp_path / "curves.svg")
    assert not plt.get_fignums()
    text = (tmp_path / "curves.svg").read_text()
    assert text.startswith("<?xml")
