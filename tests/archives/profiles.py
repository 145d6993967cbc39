"""ICC profiles made here: of screens by a matrix and a curve, of scanners by a table, of grey by a curve."""

import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
D50 = np.array([0.9642, 1.0, 0.8249])
# From linear RGB to XYZ under D50, by the columns of the primaries.
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
ADOBE = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])
P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
PROPHOTO = np.array([[0.7977, 0.1352, 0.0313], [0.2880, 0.7119, 0.0001], [0.0, 0.0, 0.8249]])
REC2020 = np.array([[0.6735, 0.1656, 0.1251], [0.2790, 0.6754, 0.0456], [-0.0019, 0.0300, 0.7968]])


def profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 by the layout of ICC.1:2001-04."""
    all_tags = {b"desc": _description(), b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    at, table, content = 132 + 12 * len(all_tags), b"", b""
    for name, data in all_tags.items():
        table += name + struct.pack(">II", at + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    body = struct.pack(">I", len(all_tags)) + table + content
    head = struct.pack(">I4xI4s4s4s", 128 + len(body), 0x02200000, kind, space, connection)
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + b"".join(map(_fixed, D50))
    return head.ljust(128, b"\0") + body


def by_matrix(matrix: Array, curve: float | Callable[[Array], Array], kind: bytes = b"mntr") -> bytes:
    """A profile of a screen or a camera; `curve` is an exponent, or gives light of samples, both from 0 to 1."""
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)}
    return profile(kind, b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(curve)))


def by_table(side: int, gamma: float, cast: tuple[float, float, float] = (1, 1, 1), *, bits: int = 16) -> bytes:
    """A profile of a scanner whose light is tinted: a table of so many steps of each channel, of 8 or 16 bits."""
    steps = np.linspace(0, 1, side)
    light = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1) ** gamma * 0.996 + 0.004
    lab = _lab(light * cast @ SRGB.T / D50)
    head = bytes([3, 3, side, 0]) + b"".join(map(_fixed, np.eye(3).ravel()))
    if bits == 8:
        ramp = bytes(range(256)) * 3
        values = (lab * (2.55, 1, 1) + (0, 128, 128)).round().clip(0, 255).astype(np.uint8).tobytes()
        return profile(b"scnr", b"RGB ", b"Lab ", {b"A2B0": b"mft1\0\0\0\0" + head + ramp + values + ramp})
    ramp = struct.pack(">HH", 0, 65535) * 3
    values = (lab * (652.8, 256, 256) + (0, 32768, 32768)).round().clip(0, 65535).astype(">u2").tobytes()
    return profile(
        b"scnr", b"RGB ", b"Lab ", {b"A2B0": b"mft2\0\0\0\0" + head + struct.pack(">HH", 2, 2) + ramp + values + ramp}
    )


def of_grey(curve: float | Callable[[Array], Array]) -> bytes:
    """A profile of grey pictures."""
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(curve)})


def srgb_curve(samples: Array) -> Array:
    """The curve of IEC 61966-2-1."""
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _lab(relative: Array) -> Array:
    roots = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _curve(curve: float | Callable[[Array], Array]) -> bytes:
    if not callable(curve):
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(curve * 256))
    values = (curve(np.linspace(0, 1, 1024)) * 65535).round().clip(0, 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()


def _description() -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I5s", 5, b"made") + bytes(78)


def _xyz(values: Array) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
