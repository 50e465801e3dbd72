"""Windows that follow a spine, on coarse maps with a known spine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.windows import background_logits, box_around, draw_windows, scaled, spine_windows

VOXEL, ROI, SHAPE = (4, 4, 4), (48, 80, 128), (80, 256, 301)


def leaning(shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Return a column of 40 x 40 mm that moves forward by half of its rise, in coarse voxels."""
    seen = torch.zeros([-(-n // 4) for n in shape], dtype=torch.bool)
    for z in range(5, 70):
        seen[5:15, 2 + z // 2 : 12 + z // 2, z] = True
    return seen


def windows(seen: torch.Tensor, margin: tuple[int, int, int] = (3, 3, 3), shape=SHAPE, roi=ROI, overlap=0.25):
    return spine_windows(seen, VOXEL, margin, shape, roi, overlap)


def coverage(found: list, shape: tuple[int, int, int]) -> np.ndarray:
    count = np.zeros(shape, int)
    for window in found:
        count[tuple(slice(max(0, s.start), s.stop) for s in window)] += 1
    return count


def test_box_around():
    seen = torch.zeros(5, 6, 7, dtype=torch.bool)
    seen[2, 1:3, 4] = seen[3, 2, 6] = True
    assert box_around(seen, (0, 0, 0)) == (slice(2, 4), slice(1, 3), slice(4, 7))
    assert box_around(seen, (1, 2, 1)) == (slice(1, 5), slice(0, 5), slice(3, 7))  # clipped
    assert scaled(box_around(seen, (0, 0, 0)), (4, 2, 1)) == (slice(8, 16), slice(2, 6), slice(4, 7))


@pytest.mark.parametrize(("overlap", "margin"), [(0.25, 3), (0, 3), (0.1, 6), (0.5, 0)])
@pytest.mark.parametrize("gap", [False, True])
def test_windows_cover_the_spine_and_its_margin(overlap, margin, gap):
    seen = leaning()
    if gap:
        seen[:, :, 33:50] = False
    found = windows(seen, (margin,) * 3, overlap=overlap)
    assert all([s.stop - s.start for s in w] == [*ROI] for w in found)
    assert all(s.start >= 0 and s.stop <= n for w in found for s, n in zip(w, SHAPE))
    wide = ndimage.binary_dilation(seen.numpy(), np.ones((3, 3, 3)), margin) if margin else seen.numpy()
    assert coverage(found, SHAPE)[np.kron(wide, np.ones((4, 4, 4), bool))[tuple(map(slice, SHAPE))]].all()


@pytest.mark.parametrize("seed", range(40))
def test_small_windows_cover_any_piece_and_its_margin(seed):
    """The windows are so short that the margin of one slab reaches into the slabs beyond its neighbours."""
    rng = np.random.default_rng(seed)
    seen = torch.from_numpy(ndimage.binary_dilation(rng.random((12, 14, 20)) < 0.002, np.ones((3, 3, 3))))
    seen[6, 7, 10] = True
    shape, margin = (48, 56, 80), int(rng.integers(1, 5))
    found = windows(seen, (margin,) * 3, shape, (16, 16, 32), float(rng.uniform(0, 0.5)))
    wide = ndimage.binary_dilation(seen.numpy(), np.ones((3, 3, 3)), margin)
    assert coverage(found, shape)[np.kron(wide, np.ones((4, 4, 4), bool))].all()


def test_windows_are_fewer_than_those_of_a_grid():
    seen = leaning()
    box = [s.stop - s.start for s in scaled(box_around(seen, (3, 3, 3)), VOXEL)]
    grid = [int(np.ceil((n - r) / (0.75 * r))) + 1 for n, r in zip(box, ROI)]
    assert len(windows(seen)) <= 2 / 3 * np.prod(grid)


def test_neighbours_share_at_least_the_overlap():
    seen = torch.zeros(20, 20, 76, dtype=torch.bool)
    seen[8:12, 8:12, 10:70] = True
    starts = sorted(w[2].start for w in windows(seen, (0, 0, 0), overlap=0.5))
    assert starts == [40, 96, 152]  # the spine has 240 voxels from 40 on; steps of half a window would be 64


def test_one_window_has_the_spine_in_its_middle_and_stays_in_the_image():
    seen = torch.zeros(20, 64, 76, dtype=torch.bool)
    seen[8:12, 30:34, 40:44] = True
    assert windows(seen, (0, 0, 0)) == [(slice(16, 64), slice(88, 168), slice(104, 232))]
    seen[:] = False
    seen[0, 0, 75] = True
    assert windows(seen, (0, 0, 0)) == [(slice(0, 48), slice(0, 80), slice(173, 301))]


def test_windows_reach_beyond_an_image_that_is_smaller():
    shape = (20, 90, 60)
    seen = torch.ones(5, 23, 15, dtype=torch.bool)
    found = windows(seen, shape=shape)
    assert found == [(slice(-14, 34), slice(y, y + 80), slice(-34, 94)) for y in (0, 10)]
    assert coverage(found, shape).all()


def test_nothing_is_drawn_between_two_pieces():
    seen = torch.zeros(20, 64, 200, dtype=torch.bool)
    seen[8:12, 30:34, 2:6] = seen[8:12, 30:34, 190:194] = True
    found = windows(seen, (0, 0, 0), shape=(80, 256, 800))
    assert len(found) == 2
    assert coverage(found, (80, 256, 800))[np.kron(seen.numpy(), np.ones((4, 4, 4), bool))].all()


def test_blended_by_hand():
    """Two windows with constant answers overlap with the weights 1 and 3."""
    image = torch.arange(8.0).reshape(1, 1, 1, 1, 8)
    seen: list[torch.Tensor] = []

    def predict(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return torch.cat([batch[..., :1].expand_as(batch), 10 + batch], 1).bfloat16()

    places = [(slice(0, 1), slice(0, 1), slice(-1, 3)), (slice(0, 1), slice(0, 1), slice(2, 6))]
    weight = torch.tensor([1.0, 3.0, 3.0, 1.0]).reshape(1, 1, 4)
    result = draw_windows(image, places, (slice(0, 1), slice(0, 1), slice(1, 8)), predict, weight, 2)
    assert [b.tolist() for b in seen] == [[[[[[0, 0, 1, 2]]]], [[[[2, 3, 4, 5]]]]]]
    assert result.dtype == torch.float32
    # voxels 1 to 7: the first window starts with a 0, the second with a 2; both have a weight of 1 in voxel 2
    assert result[0, 0, 0, 0].tolist() == [0, 1, 2, 2, 2, 0, 0]
    assert result[0, 1, 0, 0].tolist() == [11, 12, 13, 14, 15, -20, -20]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_pointwise_answers_do_not_depend_on_the_windows(batch):
    seen, image = leaning(), torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    box = scaled(box_around(seen, (3, 3, 3)), VOXEL)
    weight = torch.rand(ROI, generator=torch.Generator().manual_seed(1)) + 0.1
    result = draw_windows(image, windows(seen), box, lambda x: torch.cat([x, -x], 1), weight, batch)
    count = torch.from_numpy(coverage(windows(seen), SHAPE)[box] > 0)
    expected = torch.cat([image, -image], 1)[(..., *box)]
    torch.testing.assert_close(result[..., count], expected[..., count])
    assert torch.equal(result[..., ~count], background_logits(result)[..., ~count])
    assert not count.all()


def test_background_logits():
    logits = background_logits(torch.randn(1, 4, 2, 3, 2))
    assert logits.shape == (1, 4, 2, 3, 2)
    assert (logits[:, 0] == 0).all()
    assert (logits[:, 1:] == -20).all()
