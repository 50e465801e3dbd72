"""The marginal Dice + cross-entropy loss against hand-computed values, and what missing labels may and may not change."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from scripts.data.complete_labels import BEYOND, NO_BODY, NO_DISC, UNKNOWN
from scripts.labels import label_table
from scripts.losses import MarginalDiceCELoss, PrepareSamples, SpineLoss

SHAPE = (2, 2, 2)
ALL, WITHOUT_2 = [True, True, True], [True, True, False]  # classes: background and two structures
LABEL = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]).view(1, 1, *SHAPE)  # 4 voxels of background, 3 of class 1, 1 of class 2


def target(label: torch.Tensor, *labelled: list[bool]) -> dict[str, torch.Tensor]:
    return {"label": label, "labelled": torch.tensor(labelled)}


def log_of(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """Return logits, shape 1CXYZ, whose softmax is the given probabilities (a tuple of C per voxel)."""
    return torch.tensor(probabilities).log().T.reshape(1, -1, *SHAPE)


def reference(logits: torch.Tensor, label: torch.Tensor, labelled: list[list[bool]], smooth: float = 1.0) -> float:
    """Compute the loss in NumPy: merged probabilities, one-hot target, sums over the batch."""
    exp = np.exp(logits.double().numpy())
    p = exp / exp.sum(1, keepdims=True)
    for scan, row in zip(p, labelled):
        missing = [c for c in range(1, len(row)) if not row[c]]
        scan[0] += scan[missing].sum(0)
        scan[missing] = 0
    truth = np.moveaxis(np.eye(p.shape[1])[label[:, 0].numpy()], -1, 1)
    axes = (0, 2, 3, 4)
    dice = (2 * (p * truth).sum(axes) + smooth) / (p.sum(axes) + truth.sum(axes) + smooth)
    present = [c for c in range(1, p.shape[1]) if truth[:, c].any()]
    return (1 - dice[present].mean() if present else 0) - np.log(p[truth > 0]).mean()


def test_value_by_hand():
    # p = 1/3 everywhere: CE = ln 3; Dice of class 1 = (2 * 3/3 + 1) / (3 + 8/3 + 1) = 9/20, of class 2 = (2/3 + 1) / (1 + 8/3 + 1) = 5/14
    loss = MarginalDiceCELoss()(torch.zeros(1, 3, *SHAPE), target(LABEL, ALL))
    assert loss.item() == pytest.approx(1 - (9 / 20 + 5 / 14) / 2 + math.log(3), abs=1e-6)


def test_partial_value_by_hand():
    # class 2 is not labelled: the background has p = 2/3, class 1 has 1/3; 5 voxels are background, 3 are class 1
    loss = MarginalDiceCELoss()(torch.zeros(1, 3, *SHAPE), target(LABEL.clamp(max=1) * (LABEL < 2), WITHOUT_2))
    assert loss.item() == pytest.approx(1 - 9 / 20 - (5 * math.log(2 / 3) + 3 * math.log(1 / 3)) / 8, abs=1e-6)


def test_all_labelled_is_the_usual_dice_ce():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, 5, generator=generator)
    label = torch.randint(0, 3, (2, 1, 3, 4, 5), generator=generator)
    usual = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1, smooth_dr=1)
    loss = MarginalDiceCELoss()(logits, target(label, ALL, ALL))
    assert loss.item() == pytest.approx(usual(logits, label).item(), abs=1e-6)
    assert loss.item() == pytest.approx(reference(logits, label, [ALL, ALL]), abs=1e-6)


@pytest.mark.parametrize("labelled", [[ALL, WITHOUT_2], [WITHOUT_2, ALL], [WITHOUT_2, WITHOUT_2]])
def test_mixed_batch(labelled):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 3, 4, 5, generator=generator)
    label = torch.randint(0, 3, (2, 1, 3, 4, 5), generator=generator)
    for scan, row in zip(label, labelled):
        scan[scan == 2] *= row[2]
    loss = MarginalDiceCELoss()(logits, target(label, *labelled))
    assert loss.item() == pytest.approx(reference(logits, label, labelled), abs=1e-6)


def test_weights_of_the_terms():
    logits = torch.zeros(1, 3, *SHAPE)
    dice, cross_entropy = (MarginalDiceCELoss(d, c)(logits, target(LABEL, ALL)).item() for d, c in ((1, 0), (0, 1)))
    assert dice == pytest.approx(1 - (9 / 20 + 5 / 14) / 2, abs=1e-6)
    assert cross_entropy == pytest.approx(math.log(3), abs=1e-6)
    assert MarginalDiceCELoss(0.5, 2)(logits, target(LABEL, ALL)).item() == pytest.approx(0.5 * dice + 2 * cross_entropy, abs=1e-6)


def test_smooth_by_hand():
    # smooth = 0: Dice of class 1 = 2 / (3 + 8/3), of class 2 = (2/3) / (1 + 8/3)
    loss = MarginalDiceCELoss(lambda_ce=0, smooth=0)(torch.zeros(1, 3, *SHAPE), target(LABEL, ALL))
    assert loss.item() == pytest.approx(1 - (6 / 17 + 2 / 11) / 2, abs=1e-6)


def test_unlabelled_class_is_free_in_the_background():
    background, body = (0.7, 0.2, 0.1), (0.1, 0.8, 0.1)
    moved = (0.1, 0.2, 0.7)  # the network finds class 2 where the label has background
    label = torch.tensor([0] * 5 + [1] * 3).view(1, 1, *SHAPE)
    before, after = log_of(*[background] * 5, *[body] * 3), log_of(*[moved] * 5, *[body] * 3)
    loss = MarginalDiceCELoss()
    assert loss(after, target(label, WITHOUT_2)).item() == pytest.approx(loss(before, target(label, WITHOUT_2)).item(), abs=1e-6)
    # by hand: background 0.8, class 1 0.2 in five voxels and 0.8 in three
    dice, cross_entropy = (2 * 2.4 + 1) / (3 + 3.4 + 1), -math.log(0.8)
    assert loss(after, target(label, WITHOUT_2)).item() == pytest.approx(1 - dice + cross_entropy, abs=1e-6)
    assert (
        loss(after, target(label, ALL)).item() > loss(before, target(label, ALL)).item() + 1
    )  # it would be 5/8 ln 7 more if class 2 were labelled


def test_unlabelled_class_costs_inside_a_labelled_structure():
    label = torch.ones(1, 1, *SHAPE, dtype=torch.long)
    right, wrong = log_of(*[(0.1, 0.8, 0.1)] * 8), log_of(*[(0.1, 0.1, 0.8)] * 8)
    loss = MarginalDiceCELoss(lambda_dice=0)
    assert loss(wrong, target(label, WITHOUT_2)).item() - loss(right, target(label, WITHOUT_2)).item() == pytest.approx(
        math.log(8), abs=1e-5
    )


def test_dice_skips_structures_that_the_target_lacks():
    label = torch.ones(1, 1, *SHAPE, dtype=torch.long)
    loss = MarginalDiceCELoss(lambda_ce=0)(torch.zeros(1, 3, *SHAPE), target(label, ALL))
    assert loss.item() == pytest.approx(1 - (2 * 8 / 3 + 1) / (8 + 8 / 3 + 1), abs=1e-6)


def test_empty_label_leaves_the_cross_entropy():
    logits = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    loss = MarginalDiceCELoss()(logits, target(torch.zeros_like(LABEL), WITHOUT_2))
    assert loss.item() == pytest.approx(math.log(3 / 2), abs=1e-6)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_unlabelled_classes_add_to_the_background():
    e = np.exp([1, 2, 3, 4])
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1, 1)
    for value, p in ((0, e[0] + e[1] + e[3]), (2, e[2])):
        label = torch.full((1, 1, 1, 1, 1), value)
        for first in (True, False):  # the background counts as labelled even where the list omits it
            loss = MarginalDiceCELoss(lambda_dice=0)(logits, target(label, [first, False, True, False]))
            assert loss.item() == pytest.approx(-math.log(p / e.sum()), abs=1e-6)


def test_large_logits():
    logits = torch.tensor([200.0, -200.0, 200.0]).view(1, 3, 1, 1, 1).requires_grad_()
    background, body = (torch.full((1, 1, 1, 1, 1), value) for value in (0, 1))
    assert MarginalDiceCELoss(lambda_dice=0)(logits, target(background, WITHOUT_2)).item() == 0
    loss = MarginalDiceCELoss(lambda_dice=0)(logits, target(body, WITHOUT_2))
    assert loss.item() == pytest.approx(400 + math.log(2), abs=1e-3)  # against two merged classes
    loss.backward()
    np.testing.assert_allclose(logits.grad.flatten(), [0.5, -1.0, 0.5], atol=1e-4)


def test_large_logits_of_merged_voxels():
    logits = torch.tensor([-200.0, 200.0, -200.0]).view(1, 3, 1, 1, 1).requires_grad_()
    background, merged = (torch.full((1, 1, 1, 1, 1), value) for value in (0, 2))
    loss = MarginalDiceCELoss(lambda_dice=0)(logits, {**target(background, ALL), "merged": merged})
    assert loss.item() == pytest.approx(400 - math.log(2), abs=1e-3)
    loss.backward()
    np.testing.assert_allclose(logits.grad.flatten(), [-0.5, 1.0, -0.5], atol=1e-4)


def test_gradients_with_partial_labels():
    logits = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    label = torch.cat([LABEL, LABEL * (LABEL < 2)])
    MarginalDiceCELoss()(logits, target(label, ALL, WITHOUT_2)).backward()
    gradient = logits.grad
    assert torch.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(1).numpy(), 0, atol=1e-6)  # a constant added to all logits changes nothing
    # the merged classes share the background's gradient in proportion to their probabilities
    p = logits.detach().softmax(1)
    np.testing.assert_allclose((gradient[1, 2] / p[1, 2]).numpy(), (gradient[1, 0] / p[1, 0]).numpy(), rtol=1e-3, atol=1e-6)
    background = label[1, 0] == 0
    assert (gradient[1, 0][background] < 0).all()
    assert (gradient[1, 2][background] < 0).all()  # the class is not pushed down where it may be


def test_gradient_of_the_cross_entropy_by_hand():
    logits = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    label = LABEL * (LABEL < 2)
    MarginalDiceCELoss(lambda_dice=0)(logits, target(label, WITHOUT_2)).backward()
    # background: p - p / (p0 + p2) = 1/3 - 1/2 for classes 0 and 2; class 1: p - 1 for itself, p for the others; mean over 8 voxels
    for voxel, expected in (((0, 0, 0), (-1 / 6, 1 / 3, -1 / 6)), ((1, 0, 0), (1 / 3, -2 / 3, 1 / 3))):
        np.testing.assert_allclose(logits.grad[(0, slice(None), *voxel)].numpy() * 8, expected, atol=1e-6)


def test_gradients_without_smooth():
    logits = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    loss = MarginalDiceCELoss(smooth=0)(logits, target(LABEL * (LABEL < 2), WITHOUT_2))
    assert torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.zeros(1, 3, *SHAPE, dtype=torch.bfloat16)
    loss = MarginalDiceCELoss()(logits, target(LABEL.to(torch.uint8), ALL))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - (9 / 20 + 5 / 14) / 2 + math.log(3), abs=1e-6)


def test_inputs_are_not_changed():
    logits, labelled, label = torch.randn(1, 3, *SHAPE), torch.tensor([[False, True, False]]), (LABEL * (LABEL < 2)).to(torch.uint8)
    copies = logits.clone(), label.clone(), labelled.clone()
    MarginalDiceCELoss()(logits, {"label": label, "labelled": labelled})
    assert all(torch.equal(a, b) for a, b in zip((logits, label, labelled), copies))
    assert label.dtype == torch.uint8


@pytest.mark.parametrize(
    ("label_shape", "labelled_shape"),
    [((1, 2, 2, 2), (1, 3)), ((1, 1, 2, 2, 3), (1, 3)), ((2, 1, 2, 2, 2), (1, 3)), ((1, 3, 2, 2, 2), (1, 3)), ((1, 1, 2, 2, 2), (3,))],
)
def test_wrong_shapes(label_shape, labelled_shape):
    message = f"logits (1, 3, 2, 2, 2) need a label B1[XYZ] and labelled BC, got {label_shape}, {labelled_shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MarginalDiceCELoss()(torch.zeros(1, 3, *SHAPE), {"label": torch.zeros(label_shape), "labelled": torch.ones(labelled_shape)})


@pytest.mark.parametrize("lambda_ce", [1.0, 0.0])
def test_class_in_the_label_that_is_not_labelled(lambda_ce):
    with pytest.raises(ValueError, match=r"^a class occurs in the label that 'labelled' does not list$"):
        MarginalDiceCELoss(lambda_ce=lambda_ce)(torch.zeros(1, 3, *SHAPE), target(LABEL, WITHOUT_2))


def test_diverged_logits_are_not_blamed_on_the_label():
    assert torch.isnan(MarginalDiceCELoss()(torch.full((1, 3, *SHAPE), torch.nan), target(LABEL, ALL)))


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (1, -0.5, 1), (1, 1, -1)])
def test_negative_arguments(arguments):
    message = "weights and smooth must not be negative, got {}, {}, {}".format(*arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MarginalDiceCELoss(*arguments)


# voxels that are unknown


def test_value_with_unknown_voxels_by_hand():
    # 2 voxels of background, 2 of class 1 and 1 of class 2 remain, p = 1/3: Dice (4/3 + 1) / (2 + 5/3 + 1) and (2/3 + 1) / (1 + 5/3 + 1)
    label = torch.tensor([0, UNKNOWN, UNKNOWN, 0, 1, UNKNOWN, 1, 2]).view(1, 1, *SHAPE)
    loss = MarginalDiceCELoss()(torch.zeros(1, 3, *SHAPE), target(label, ALL))
    assert loss.item() == pytest.approx(1 - (1 / 2 + 5 / 11) / 2 + math.log(3), abs=1e-6)


@pytest.mark.parametrize("labelled", [ALL, WITHOUT_2])
@pytest.mark.parametrize("arguments", [(1, 1, 1), (1, 0, 0.5), (0, 1, 1)])
def test_unknown_voxels_count_as_removed(labelled, arguments):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 40, 1, 1, generator=generator)
    label = torch.randint(0, sum(labelled), (2, 1, 40, 1, 1), generator=generator)
    removed = torch.arange(40) % 3 == 1
    hidden = torch.where(removed.view(1, 1, -1, 1, 1), UNKNOWN, label)
    loss = MarginalDiceCELoss(*arguments)
    with_them, without = (
        loss(logits, target(hidden, labelled, labelled)),
        loss(logits[:, :, ~removed], target(label[:, :, ~removed], labelled, labelled)),
    )
    assert with_them.item() == pytest.approx(without.item(), abs=1e-6)
    assert loss(logits, target(hidden.to(torch.uint8), labelled, labelled)).item() == with_them.item()


def test_no_gradient_at_unknown_voxels():
    logits = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(6)).requires_grad_()
    label = torch.cat([LABEL, LABEL * (LABEL < 2)])
    label[:, 0, 0, 1], label[1, 0, 1, 0, 0] = UNKNOWN, UNKNOWN
    MarginalDiceCELoss()(logits, target(label, ALL, WITHOUT_2)).backward()
    unknown = (label == UNKNOWN).expand_as(logits)
    assert unknown.sum() == 3 * 5
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).all()
    assert torch.isfinite(logits.grad).all()


def test_nothing_known_costs_nothing():
    logits = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(7)).requires_grad_()
    loss = MarginalDiceCELoss()(logits, target(torch.full_like(LABEL, UNKNOWN), WITHOUT_2))
    assert loss.item() == 0
    loss.backward()
    assert (logits.grad == 0).all()


# voxels where a class may be there or not


def test_value_with_merged_voxels_by_hand():
    # 4 voxels, p = 1/3: body; background; perhaps disc, no body; perhaps body, no disc
    label, merged = torch.tensor([1, 0, 0, 0]).view(1, 1, 4, 1, 1), torch.tensor([0, 0, 2, 1]).view(1, 1, 4, 1, 1)
    cross_entropy = MarginalDiceCELoss(0, 1)(torch.zeros(1, 3, 4, 1, 1), {**target(label, ALL), "merged": merged})
    assert cross_entropy.item() == pytest.approx((2 * math.log(3) + 2 * math.log(3 / 2)) / 4, abs=1e-6)
    dice = MarginalDiceCELoss(1, 0)(torch.zeros(1, 3, 4, 1, 1), {**target(label, ALL), "merged": merged})
    assert dice.item() == pytest.approx(1 - (2 / 3 + 1) / (1 + 3 * 1 / 3 + 1), abs=1e-6)  # a body is no error where it may be


def test_a_merged_class_that_is_not_labelled_counts_once():
    background, labelled = torch.zeros(1, 1, 2, 1, 1, dtype=torch.int64), torch.tensor([[True, True, False]])
    given = {"label": background, "labelled": labelled, "merged": torch.full_like(background, 2)}
    loss = MarginalDiceCELoss(0, 1)(torch.zeros(1, 3, 2, 1, 1), given)
    assert loss.item() == pytest.approx(math.log(3 / 2), abs=1e-6)  # two of three equal classes may be there


def test_merged_classes_share_their_gradient():
    logits = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(9)).requires_grad_()
    merged = torch.full((2, 1, *SHAPE), 2)
    MarginalDiceCELoss(0, 1)(logits, {**target(torch.zeros_like(merged), ALL, ALL), "merged": merged}).backward()
    gradient = logits.grad
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 1] > 0).all()  # no body: down
    assert (gradient[:, [0, 2]] < 0).all()  # one of both: up, the likelier one more
    torch.testing.assert_close(gradient[:, 0] * logits[:, 2].exp(), gradient[:, 2] * logits[:, 0].exp())


def test_nothing_merged_changes_nothing():
    logits = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(10))
    plain = target(LABEL, ALL)
    assert MarginalDiceCELoss()(logits, {**plain, "merged": torch.zeros_like(LABEL)}) == MarginalDiceCELoss()(logits, plain)


# both networks


def samples(**replaced: torch.Tensor) -> dict:
    """Return a batch of one scan, as `RandSpineSamplesd` gives it: labels are floats."""
    values = torch.tensor([0, 1, 12, 23, BEYOND, UNKNOWN, NO_BODY, NO_DISC], dtype=torch.float32).view(1, 1, *SHAPE)
    labelled = torch.ones(1, len(label_table()), dtype=torch.bool)
    batch = {"image": torch.rand(1, 1, *SHAPE), "label": values, "view": torch.rand(1, 1, *SHAPE), "view_label": values.flip(2)}
    return {**batch, "labelled": labelled, "source": ["a"], **replaced}


def test_prepare_samples():
    batch = samples()
    copies = {k: v.clone() for k, v in batch.items() if k != "source"}
    image, prepared, args, kwargs = PrepareSamples()(batch, torch.device("cpu"), non_blocking=True)
    assert image is batch["image"]
    assert args == ()
    assert list(kwargs) == ["view"]
    assert kwargs["view"] is batch["view"]
    assert sorted(prepared) == ["kinds", "labelled", "levels", "merged"]
    assert prepared["kinds"].flatten().tolist() == [0, 1, 1, 2, UNKNOWN, UNKNOWN, 0, 0]  # beyond the labels the kind is unknown ...
    assert prepared["merged"].flatten().tolist() == [0, 0, 0, 0, 0, 0, 2, 1]
    assert batch["view_label"].flatten().tolist() == [BEYOND, UNKNOWN, NO_BODY, NO_DISC, 0, 1, 12, 23]
    assert prepared["levels"].flatten().tolist() == [0, UNKNOWN, UNKNOWN, UNKNOWN, 0, 1, 12, 23]  # ... but it is no labelled level
    assert prepared["labelled"] is batch["labelled"]
    assert all(torch.equal(batch[k], v) for k, v in copies.items())


def test_prepared_kinds_of_all_channels():
    label = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 4, 4)
    kinds = PrepareSamples()(samples(label=label))[1]["kinds"].flatten().tolist()
    assert kinds == [0, *[1] * 12, *[2] * 11, *[UNKNOWN] * 228, 0, 0, UNKNOWN, UNKNOWN]


def test_spine_loss_is_the_sum_of_both():
    batch = samples()
    labelled = torch.zeros_like(batch["labelled"])
    labelled[:, [1, 12, 23]] = True
    prepared = PrepareSamples()(samples(labelled=labelled))[1]
    generator = torch.Generator().manual_seed(8)
    levels, kinds = torch.randn(1, 24, *SHAPE, generator=generator), torch.randn(1, 3, *SHAPE, generator=generator)
    parts = MarginalDiceCELoss(1, 0), MarginalDiceCELoss(0, 2)
    expected = parts[0](levels, target(prepared["levels"], labelled[0].tolist())) + parts[1](
        kinds, {**target(prepared["kinds"], ALL), "merged": prepared["merged"]}
    )
    assert SpineLoss(levels=parts[0], kinds=parts[1])((levels, kinds), prepared).item() == pytest.approx(expected.item(), abs=1e-6)


def test_without_views_the_loss_is_that_of_the_patches():
    batch = {k: v for k, v in samples().items() if k not in ("view", "view_label")}
    _, prepared, _, kwargs = PrepareSamples()(batch)
    assert kwargs["view"].numel() == prepared["levels"].numel() == 0
    kinds = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(8))
    both = {**PrepareSamples()(samples())[1]}
    expected = SpineLoss(levels=lambda *_: 0.0, kinds=MarginalDiceCELoss())((torch.ones(1), kinds), both)
    assert SpineLoss(MarginalDiceCELoss(), MarginalDiceCELoss())((kwargs["view"], kinds), prepared) == expected


def test_without_patches_the_loss_is_that_of_the_views():
    batch = {k: v for k, v in samples().items() if k not in ("image", "label")}
    image, prepared, _, kwargs = PrepareSamples()(batch)
    assert image.numel() == prepared["kinds"].numel() == 0
    assert torch.equal(kwargs["view"], batch["view"])
    levels = torch.randn(1, 24, *SHAPE, generator=torch.Generator().manual_seed(8))
    both = {**PrepareSamples()(samples())[1]}
    expected = SpineLoss(levels=MarginalDiceCELoss(), kinds=lambda *_: 0.0)((levels, torch.ones(1, 3)), both)
    assert SpineLoss(MarginalDiceCELoss(), MarginalDiceCELoss())((levels, image), prepared) == expected


def test_spine_loss_by_hand():
    # levels: 3 of 4 voxels known, p = 1/24 each for L1 (twice) and 23/24 for the rest, of which no other is labelled
    prepared = {
        "levels": torch.tensor([6, 6, 0, UNKNOWN]).view(1, 1, 4, 1, 1),
        "labelled": torch.tensor([[c in (0, 6) for c in range(24)]]),
        "kinds": torch.tensor([1, 0, UNKNOWN, UNKNOWN, UNKNOWN]).view(1, 1, 5, 1, 1),
        "merged": torch.zeros(1, 1, 5, 1, 1, dtype=torch.uint8),
    }
    loss = SpineLoss(MarginalDiceCELoss(), MarginalDiceCELoss())((torch.zeros(1, 24, 4, 1, 1), torch.zeros(1, 3, 5, 1, 1)), prepared)
    levels = 1 - (2 * 2 / 24 + 1) / (2 + 3 / 24 + 1) + (2 * math.log(24) - math.log(23 / 24)) / 3
    kinds = 1 - (2 / 3 + 1) / (1 + 2 / 3 + 1) + math.log(3)
    assert loss.item() == pytest.approx(levels + kinds, abs=1e-5)
