"""A small phantom for tests of slices and pictures."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from scripts.labels import structure

L1, L2, DISC = (structure(name).channel for name in ("L1", "L2", "L1/L2"))
SPACING = np.array([4.0, 1.0, 1.5])  # voxel size of the phantom to the right, anterior and superior


def rotation(degrees: float) -> np.ndarray:
    """Return a rotation (3, 3) about x, then about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Return a RAS image and channel indices (9, 40, 50): L1 above a disc above L2, widest in sagittal slice 5 and coronal slice 22."""
    label = np.zeros((9, 40, 50), np.uint8)
    for channel, low, high in ((L1, 28, 38), (DISC, 24, 28), (L2, 14, 24)):
        label[3:8, 16:28, low:high] = channel
        label[5, 15, low:high] = channel
        label[2, 22, low:high] = channel
    image = np.random.default_rng(0).uniform(50, 60, label.shape).astype(np.float32)
    image[5, 37, 45] = 1000  # anterior and superior
    image[1, 22, 3] = 1000  # left and inferior
    return image, label


def turned(volume: np.ndarray, codes: str, degrees: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return `volume` stored along the axes `codes` ("PIR"), and its affine, oblique by `degrees`."""
    ras = np.eye(4)
    ras[:3, :3] = rotation(degrees) @ np.diag(SPACING)
    ras[:3, 3] = (-30, 12, 70)
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return nib.apply_orientation(volume, change), ras @ inv_ornt_aff(change, volume.shape)


def curved(step: int) -> np.ndarray:
    """RAS channel indices (12, 40, 50): L1 with its centre at 34 of the last axis, L2 `step` voxels further left at 14."""
    label = np.zeros((12, 40, 50), np.uint8)
    for channel, middle, x in ((L1, 34, 8), (L2, 14, 8 - step)):
        label[x - 1 : x + 2, 19:22, middle - 4 : middle + 5] = channel
    label[:, :, 48] = 255  # "ignore" is no structure
    return label
