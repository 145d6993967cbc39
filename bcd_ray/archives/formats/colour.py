"""Any picture to the sRGB that the network was trained on, at the size of its input.

A profile other than sRGB is applied after the picture was made small: that takes 0.9 ms whatever
its size (a JPEG of 224x224 takes 0.26). Without a profile, or with one that says sRGB, nothing changes.
"""

import io
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from bcd_ray.archives.formats.base import SIZE, Decoded, Pixels

_SAME = 2  # levels: profiles that differ less from sRGB are sRGB, written by another program
_SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue, x and y each
# ITU-T H.273, as cICP of a PNG uses it.
_PRIMARIES = {
    1: _SRGB_PRIMARIES,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_GAMMAS = {4: 1 / 2.2, 8: 1.0}
_SRGB_CURVES = (1, 6, 13, 14, 15)  # those of video are shown, by convention, on a screen of sRGB
_SCREEN = 2.2  # what gAMA is about: 1/2.2 means as it is
_GAMMA_RANGE = (0.1, 2.0)
_STEPS = 9  # of each channel, at which a profile is looked at
# Levels. Sound profiles, of screens, cameras and scanners, were within 15 of grey and fell by none; of a mangled one
# grey is seldom within 40.
_LIGHT, _DARK, _MIDDLE, _MOST_CAST, _MOST_FALL = 200, 64, (64, 216), 32, 32
_SENSELESS = "its colour profile cannot be used: the colours are taken as they are"


class Space:
    """A space of colours that has primaries and one curve: gAMA and cHRM, or cICP, of a PNG."""

    def __init__(self, gamma: float | None, primaries: tuple[float, ...] = _SRGB_PRIMARIES) -> None:
        """`gamma` is the exponent that encoded the samples; None is the curve of sRGB.

        Raises:
            ValueError: no light has these primaries, or no screen that curve.
        """
        if gamma is not None and not _GAMMA_RANGE[0] <= gamma <= _GAMMA_RANGE[1]:
            raise ValueError(f"a gamma of {gamma}")
        self._gamma = gamma
        self._matrix = np.linalg.inv(_to_xyz(_SRGB_PRIMARIES)) @ _to_xyz(primaries)

    @property
    def is_srgb(self) -> bool:
        """Whether it is sRGB but for rounding."""
        curve = self._gamma is None or abs(self._gamma * _SCREEN - 1) < 0.02
        return curve and bool(np.abs(self._matrix - np.eye(3)).max() < 0.01)

    def apply(self, small: Pixels) -> Pixels:
        """(h, w, 3) uint8 in this space to the same in sRGB."""
        samples = small / 255.0
        linear = _from_srgb(samples) if self._gamma is None else samples ** (1 / self._gamma)
        linear = np.clip(linear @ self._matrix.T, 0, 1)
        shown = _into_srgb(linear) if self._gamma is None else linear ** (1 / _SCREEN)
        return (shown * 255).round().astype(np.uint8)


class Senseless:
    """What is said of colours and cannot be."""


Profile = bytes | Space | Senseless | None  # an ICC profile, a space, or nothing said


def of_png(chunks: Mapping[bytes, bytes]) -> Profile | str:
    """What a PNG's chunks say of its colours, the strongest first; a name where it is none that we can show.

    An iCCP is left to Pillow, which unpacks it.
    """
    if len(code := chunks.get(b"cICP", b"")) == 4:
        primaries, curve, matrix, full_range = code
        if primaries not in _PRIMARIES or curve not in (*_GAMMAS, *_SRGB_CURVES) or matrix or not full_range:
            return "cICP " + "/".join(map(str, code))
        return Space(_GAMMAS.get(curve), _PRIMARIES[primaries])
    if chunks.keys() & {b"iCCP", b"sRGB"}:
        return None
    gamma = int.from_bytes(chunks.get(b"gAMA", b""), "big") / 100_000
    numbers = np.frombuffer(chunks.get(b"cHRM", b"")[:32], ">u4") / 100_000
    if not gamma and len(numbers) != 8:
        return None
    try:
        return Space(gamma or None, tuple(numbers) if len(numbers) == 8 else _SRGB_PRIMARIES)
    except ValueError:
        return Senseless()


def finish(image: Image.Image, profile: Profile, damage: str | None = None) -> Decoded:
    """An upright picture (RGB, L or CMYK) as the network takes it; a profile that cannot be used is damage."""
    width, height = image.size
    if image.mode != "RGB" and not isinstance(profile, bytes):
        image = image.convert("RGB")
    small = image if image.size == (SIZE, SIZE) else image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if isinstance(profile, bytes):
        if small.mode == "L" and profile[16:20] == b"RGB ":  # left from the colours that the grey was made of
            small = small.convert("RGB")
        try:
            transform = _transform(profile, small.mode)
        except MemoryError:
            raise
        except Exception:  # ImageCms raises many types on damaged profiles
            damage = damage or _SENSELESS
        else:
            if transform is not None:
                small = ImageCms.applyTransform(small, transform) or small
    pixels = np.asarray(small if small.mode == "RGB" else small.convert("RGB"))
    if isinstance(profile, Space) and not profile.is_srgb:
        pixels = profile.apply(pixels)
    if isinstance(profile, Senseless):
        damage = damage or _SENSELESS
    return Decoded(pixels, width, height, damage)


@lru_cache(maxsize=16)  # of a scanner all images have the same; to make one takes 1 to 50 ms
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB, None where that changes nothing."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * 3, indexing="ij"), -1).reshape(1, -1, 3) if mode == "RGB" else steps[None]
    before = Image.fromarray(np.ascontiguousarray(grid))
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    _check_sense(after.reshape(*[_STEPS] * (3 if mode == "RGB" else 1), 3))
    change = np.abs(np.asarray(before.convert("RGB")).astype(int) - after)
    return None if change.max() <= _SAME else transform


def _check_sense(shown: npt.NDArray[np.int_]) -> None:
    """ValueError for a profile that was damaged, by what it shows of (9,) grey or (9, 9, 9) red, green and blue.

    White is light, black is dark, grey is about as grey and as light, and more of a colour never shows less of it.
    """
    greys = shown if shown.ndim == 2 else np.einsum("iiic->ic", shown)
    low, high = _MIDDLE
    falls = [np.diff(shown[..., channel], axis=channel).min() for channel in range(3)] if shown.ndim == 4 else [0]
    if (
        greys[-1].min() < _LIGHT
        or greys[0].max() > _DARK
        or not low <= greys[_STEPS // 2].mean() <= high
        or np.ptp(greys, axis=1).max() > _MOST_CAST
        or np.diff(greys.mean(axis=1)).min() < 0
        or min(falls) < -_MOST_FALL
    ):
        raise ValueError("a profile that shows grey as a colour, or more light as less")


def _to_xyz(primaries: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """(3, 3) from linear RGB of these primaries to XYZ, adapted to the white of sRGB by Bradford's method.

    Raises:
        ValueError: they are no colours of light, or white is not made of the three.
    """
    points = np.array(primaries, np.float64).reshape(4, 2)
    inside = (points.min() >= 0) and (points[:, 1].min() > 0) and (points.sum(axis=1).max() < 1.001)
    if not inside or abs(np.linalg.det(np.diff(points[1:], axis=0))) < 1e-6:
        raise ValueError("primaries that no light has")
    xyz = np.column_stack([points, 1 - points.sum(axis=1)]) / points[:, 1:]
    white, colours = xyz[0], xyz[1:].T
    shares = np.linalg.solve(colours, white)
    if shares.min() <= 0:
        raise ValueError("a white that is not made of the primaries")
    matrix = colours * shares
    target = np.array([0.3127, 0.3290, 1 - 0.3127 - 0.3290]) / 0.3290
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted: npt.NDArray[np.float64] = np.linalg.solve(cone, np.diag((cone @ target) / (cone @ white)) @ cone) @ matrix
    return adapted


def _from_srgb(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _into_srgb(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
