# SPDX-License-Identifier: Apache-2.0
"""From a photograph to the input, against Pillow and against arithmetic done by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tvmattend.runtime.network import InputError, ToolMissingError, preprocess

RAW = {"resize": 64, "crop": 48, "mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1.0}


def _photograph() -> np.ndarray:
    import sklearn.datasets

    path = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def _by_pillow(pixels: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """Resize the shorter side and crop the middle, as torchvision's transforms do."""
    height, width = pixels.shape[:2]
    if height < width:
        size = (int(resize * width / height), resize)
    else:
        size = (resize, int(resize * height / width))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)), "float32")


@pytest.mark.parametrize(
    "shape", [(427, 640), (640, 427), (100, 100), (64, 64), (64, 200), (20, 33), (500, 65), (7, 5)]
)
def test_resizing_and_cropping_are_pillows_within_a_grey_level(shape: tuple[int, int]) -> None:
    """Pillow rounds to whole grey levels after each of its two passes; we do not round."""
    height, width = shape
    photograph = _photograph()[:height, :width]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for pixels in (noise, photograph):
        ours = preprocess(pixels, RAW)[0].transpose(1, 2, 0)
        expected = _by_pillow(pixels, 64, 48)
        assert np.abs(ours - expected).max() <= 1.01
        assert np.abs(ours - expected).mean() < 0.35


def test_an_image_of_the_right_size_is_only_cropped() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(
        preprocess(pixels, RAW)[0], pixels[8:56, 8:56].transpose(2, 0, 1).astype("float32")
    )


def test_halving_a_ramp_by_hand() -> None:
    """A triangle of width 2 over pixels 0..7: the weights are (1, 3, 3, 1) / 8."""
    ramp = np.array([0, 10, 20, 30, 40, 50, 60, 70], np.uint8)
    pixels = np.broadcast_to(ramp[:, None, None], (8, 8, 3))
    rows = preprocess(pixels, {**RAW, "resize": 4, "crop": 4})[0, 0, :, 0]
    inner = [(10 + 3 * 20 + 3 * 30 + 40) / 8, (30 + 3 * 40 + 3 * 50 + 60) / 8]
    edges = [(3 * 0 + 3 * 10 + 20) / 7, (50 + 3 * 60 + 3 * 70) / 7]
    np.testing.assert_allclose(rows, [edges[0], *inner, edges[1]], rtol=1e-6)


def test_scale_mean_and_deviation_are_a_channels_own() -> None:
    recipe = {"resize": 2, "crop": 2, "mean": [0.1, 0.2, 0.3], "std": [0.5, 1, 2], "scale": 1 / 255}
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 255, 51, 102
    x = preprocess(pixels, recipe)
    assert (x.shape, x.dtype) == ((1, 3, 2, 2), np.float32)
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x[0, :, 0, 0], [0.9 / 0.5, 0.0, 0.1 / 2], atol=1e-6)


def test_height_and_width_are_not_swapped() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, 3] = 255
    x = preprocess(pixels, {**RAW, "resize": 4, "crop": 4})
    assert x[0, 0, 0, 3] == 255
    assert x.sum() == 3 * 255


def test_a_path_a_pil_image_and_an_array_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = preprocess(pixels, RAW)
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(pixels)):
        np.testing.assert_array_equal(preprocess(image, RAW), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_kinds_of_images_become_rgb(mode: str, tmp_path: Path) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    grey = Image.new("RGB", (64, 64), (255, 255, 255)).convert(mode)
    grey.save(tmp_path / f"image{suffix}")
    np.testing.assert_allclose(preprocess(tmp_path / f"image{suffix}", RAW), 255.0, atol=1)


def test_a_camera_held_upright_gives_an_upright_image(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # Orientation: rotated by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    upright = preprocess(tmp_path / "photo.png", RAW)[0, 0]
    assert upright[0].max() == 0
    assert upright[-1].min() == 200


def test_a_photo_is_upright_also_where_pillow_opened_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotated by 90 degrees
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    expected = preprocess(np.rot90(pixels, -1), RAW)
    np.testing.assert_array_equal(preprocess(tmp_path / "photo.png", RAW), expected)
    with Image.open(tmp_path / "photo.png") as opened:
        np.testing.assert_array_equal(preprocess(opened, RAW), expected)


def test_sixteen_bits_are_the_same_picture(tmp_path: Path) -> None:
    grey = np.random.default_rng(4).integers(0, 256, (64, 64), np.uint8)
    expected = preprocess(np.stack([grey] * 3, 2), RAW)
    wide = grey.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "grey.png")
    old = Image.fromarray(wide.astype(np.int32))
    old.format = "PNG"
    swapped = Image.frombytes("I;16B", (64, 64), wide.astype(">u2").tobytes())
    for image in (tmp_path / "grey.png", Image.fromarray(wide), old, swapped):
        np.testing.assert_array_equal(preprocess(image, RAW), expected)
    Image.fromarray(np.full((64, 64), 257 * 9 + 129, np.uint16)).save(tmp_path / "near.png")
    assert set(preprocess(tmp_path / "near.png", RAW).flat) == {10.0}


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_values_without_a_range_are_refused(kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / "image.tif")
    with Image.open(tmp_path / "image.tif") as opened:
        for image in (tmp_path / "image.tif", opened):
            with pytest.raises(InputError, match="which of its values is white") as caught:
                preprocess(image, RAW)
            assert caught.value.hint.startswith("scale it to 0..255")


WRONG: dict[str, Any] = {
    "float": np.zeros((8, 8, 3), "float32"),
    "chw": np.zeros((3, 8, 8), "uint8"),
    "grey": np.zeros((8, 8), "uint8"),
    "batch": np.zeros((1, 8, 8, 3), "uint8"),
    "empty": np.zeros((0, 8, 3), "uint8"),
    "number": 3,
    "none": None,
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="image"):
        preprocess(WRONG[kind], RAW)


@pytest.mark.parametrize(
    "content", [b"", b"plain text", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_that_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"photo\.jpg does not open"):
        preprocess(tmp_path / "photo.jpg", RAW)
    with pytest.raises(InputError, match="No such file"):
        preprocess(tmp_path / "nothing.jpg", RAW)


def test_an_image_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="does not open"):
        preprocess(tmp_path / "photo.png", RAW)


def test_without_pillow_an_array_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    preprocess(np.zeros((64, 64, 3), np.uint8), RAW)
    with pytest.raises(ToolMissingError, match="Pillow") as caught:
        preprocess(tmp_path / "photo.jpg", RAW)
    assert caught.value.hint.startswith("pip install pillow")
    assert "array" in caught.value.hint


def test_a_panorama_takes_no_more_memory_than_its_middle() -> None:
    pixels = np.zeros((2, 20000, 3), np.uint8)
    assert preprocess(pixels, {**RAW, "resize": 256, "crop": 224}).shape == (1, 3, 224, 224)
