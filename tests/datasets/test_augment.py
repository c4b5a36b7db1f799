import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref.datasets import check_images, normalise, random_crop, random_flip


def images(n, channels=3, height=7, width=9):
    x = np.random.default_rng(0).integers(1, 256, (n, channels, height, width), dtype=np.uint8)
    x.flags.writeable = False
    return x


@given(seed=st.integers(0, 2**32), padding=st.integers(0, 4), n=st.integers(1, 5))
def test_a_crop_is_a_window_of_the_padded_image(seed, padding, n):
    x = images(n)
    crop = random_crop(x, np.random.default_rng(seed), padding=padding)
    top, left = np.random.default_rng(seed).integers(0, 2 * padding + 1, size=(2, n))
    for k in range(n):
        padded = np.pad(x[k], ((0, 0), (padding, padding), (padding, padding)))
        np.testing.assert_array_equal(crop[k], padded[:, top[k] : top[k] + 7, left[k] : left[k] + 9])
    assert crop.dtype == x.dtype


def test_a_flip_mirrors_columns_of_the_drawn_images():
    x = images(50)
    flipped = random_flip(x, np.random.default_rng(2))
    drawn = np.random.default_rng(2).random(50) < 0.5
    np.testing.assert_array_equal(flipped[drawn], x[drawn][..., ::-1])
    np.testing.assert_array_equal(flipped[~drawn], x[~drawn])
    assert 10 < drawn.sum() < 40
    np.testing.assert_array_equal(random_flip(x, np.random.default_rng(0), probability=1), x[..., ::-1])
    np.testing.assert_array_equal(random_flip(x, np.random.default_rng(0), probability=0), x)


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 255.0), (np.float64, 16)])
def test_normalised_pixels_go_back(dtype, scale):
    x, mean, std = images(4), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    z = normalise(x, mean, std, scale=scale, dtype=dtype)
    assert z.dtype == dtype
    back = (z.astype(float) * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * scale
    np.testing.assert_allclose(back, x, atol=255 * 4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(
        normalise(x, 0.5, 0.25, dtype=dtype), normalise(x, [0.5] * 3, [0.25] * 3, dtype=dtype)
    )


def test_good_images_pass():
    check_images(images(2), [0, 9], n_classes=10, input_shape=(3, 7, 9))
    check_images(np.zeros((1, 5, 2, 34, 34), np.float32), np.array([3]), n_classes=4, input_shape=(5, 2, 34, 34))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 4)), [0, 1], r"x has shape \(2, 4\), expected \(B, 3\)"),
        (np.zeros(3), [0, 1], r"x has shape \(3,\), expected \(B, 3\)"),
        (np.array([["a"] * 3]), [0], "x has dtype <U1, expected integers or floats"),
        (np.zeros((1, 3), complex), [0], "x has dtype complex128, expected integers or floats"),
        (np.zeros((2, 3)), [0.0, 1.0], "y has dtype float64, expected integers"),
        (np.zeros((2, 3)), [0], r"y has shape \(1,\), expected \(2,\), one label an item"),
        (np.zeros((0, 3)), np.zeros(0, int), "x and y are empty"),
        (np.array([[0, 0, 0], [0, np.nan, np.inf]]), [0, 1], r"x\[1, 1\] is nan, expected finite pixels; 2 pixels"),
        (np.zeros((3, 3)), [0, 5, -1], r"y\[1\] is 5, expected labels 0 to 4; 2 labels are out of range"),
    ],
)
def test_bad_images_are_refused_in_one_line(x, y, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_images(x, y, n_classes=5, input_shape=(3,))
    assert "\n" not in str(caught.value)
