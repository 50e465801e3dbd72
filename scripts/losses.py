"""Dice + cross-entropy that knows which structures of a scan are labelled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.engines.utils import PrepareBatch
from torch.nn.modules.loss import _Loss

from scripts.data.complete_labels import BEYOND, NO_BODY, NO_DISC, UNKNOWN
from scripts.labels import label_table
from scripts.network import KINDS

MIN_P = 1e-37  # of a float32; below it a logarithm is taken from the logits


class PrepareSamples(PrepareBatch):
    """Batch of `RandSpineSamplesd` -> `(image, target, (), {"view": view})`, what `SpineNet` and `SpineLoss` take, on the device.

    What the batch lacks, patches or views, is an empty tensor, and so is its target.

    The target holds the views' `levels` (channel indices) with `labelled`, and the patches' `kinds` (see `network.KINDS`) with
    `merged`. Voxels that tell nothing are `UNKNOWN` in both; beyond the last labelled level the kind is unknown too, while the level
    is not: none of those that are labelled. Where there is no body but perhaps a disc, the kind is background, merged with disc.
    """

    def __init__(self) -> None:
        kinds = torch.full((256,), UNKNOWN, dtype=torch.uint8)
        kinds[: len(label_table())] = torch.tensor([KINDS.index(s.kind) for s in label_table()], dtype=torch.uint8)
        kinds[[NO_BODY, NO_DISC]] = KINDS.index("background")
        self.kind_of_value = kinds
        self.merged_of_value = torch.zeros(256, dtype=torch.uint8)
        self.merged_of_value[NO_BODY], self.merged_of_value[NO_DISC] = KINDS.index("disc"), KINDS.index("body")

    def __call__(self, batchdata: Mapping, device=None, non_blocking: bool = False, **kwargs):
        batch = {k: v.to(device=device, non_blocking=non_blocking, **kwargs) for k, v in batchdata.items() if isinstance(v, torch.Tensor)}
        nothing = batch["labelled"].new_empty(len(batch["labelled"]), 0)
        image, label, view, levels = (batch.get(key, nothing) for key in ("image", "label", "view", "view_label"))
        kinds, merged = (values.to(label.device)[label.long()] for values in (self.kind_of_value, self.merged_of_value))
        levels = levels.masked_fill(levels == BEYOND, 0).masked_fill((levels == NO_BODY) | (levels == NO_DISC), UNKNOWN)
        return image, {"kinds": kinds, "merged": merged, "levels": levels, "labelled": batch["labelled"]}, (), {"view": view}


class SpineLoss(_Loss):
    """Sum of the loss of the views' levels, where there are views, and that of the patches' kinds, where there are patches.

    Args:
        levels, kinds: losses of logits and a target as `MarginalDiceCELoss` takes it.
    """

    def __init__(self, levels: _Loss, kinds: _Loss) -> None:
        super().__init__()
        self.levels = levels
        self.kinds = kinds

    def forward(self, input: tuple[torch.Tensor, torch.Tensor], target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        levels, kinds = input
        losses = []
        if kinds.numel():
            every_kind = torch.ones(kinds.shape[:2], dtype=torch.bool, device=kinds.device)
            losses.append(self.kinds(kinds, {"label": target["kinds"], "merged": target["merged"], "labelled": every_kind}))
        if levels.numel():
            losses.append(self.levels(levels, {"label": target["levels"], "labelled": target["labelled"]}))
        return sum(losses)


class MarginalDiceCELoss(_Loss):
    """Sum of soft Dice and cross-entropy over the structures that are labelled in each scan.

    A structure that is visible but not labelled lies in the label's background. There the network may answer either: the
    probabilities of all classes not labelled in that scan are added to that of the background (marginal loss, Fang & Yan 2020,
    IEEE TMI 39:3619; Shi et al. 2021, Med Image Anal 70:101979). With every class labelled it is the usual DiceCE.

    Voxels whose label is `UNKNOWN` (255) count for nothing.

    Dice is taken over the batch (sums over all its voxels) and averaged over the foreground classes that occur in the target;
    cross-entropy alone punishes a class that occurs nowhere.

    Args:
        lambda_dice: weight of the Dice term.
        lambda_ce: weight of the cross-entropy term.
        smooth: added to numerator and denominator of the Dice.
    """

    def __init__(self, lambda_dice: float = 1.0, lambda_ce: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        if min(lambda_dice, lambda_ce, smooth) < 0:
            raise ValueError(f"weights and smooth must not be negative, got {lambda_dice}, {lambda_ce}, {smooth}")
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.smooth = smooth

    def forward(self, input: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Args:
            input: logits, shape BC[XYZ], channel 0 is the background.
            target: `label`, class indices, shape B1[XYZ]; `labelled`, which classes are annotated, boolean, shape BC; `merged`, if it
                is there, a class per voxel that may be there where the label is background, 0 for none, shape B1[XYZ].

        Raises:
            ValueError: if the shapes do not fit, or a class occurs in the label without being labelled.
        """
        label, known, free = _checked(input, target)
        # few volumes of all classes are held: the time goes into memory
        logits = input.float().flatten(2)
        p = logits.softmax(1)
        weight = known.float()
        in_background = free.float()
        in_background[:, 0] = 1
        p_background = (p * in_background[..., None]).sum(1)
        predicted = ((p * weight[:, None]).sum(2) * ~free).sum(0)
        merged = torch.zeros_like(label)
        if "merged" in target:
            merged = target["merged"].flatten(1).long()
            may_be = ~free
            may_be[:, 0] = False
            p_merged = p.gather(1, merged[:, None])[:, 0] * may_be.gather(1, merged)  # of free classes it is in p_background already
            p_background = p_background + p_merged
            predicted = predicted.index_add(0, merged.flatten(), -(p_merged * weight).flatten())
        p_truth = torch.where(label > 0, p.gather(1, label[:, None])[:, 0], p_background)
        log_truth = _log_of(p_truth, known, logits, label, merged, in_background)
        cross_entropy = -(log_truth * weight).sum() / known.sum().clamp(min=1)
        overlap = torch.zeros_like(predicted).index_add(0, label.flatten(), (p_truth * weight).flatten())
        size = torch.bincount(label.flatten(), minlength=len(predicted))
        return self.lambda_dice * self._dice_loss(overlap, size, predicted) + self.lambda_ce * cross_entropy

    def _dice_loss(self, overlap: torch.Tensor, size: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """1 - mean Dice of the foreground classes of a size; all three of shape C."""
        present = size > 0
        present[0] = False
        if not present.any():
            return predicted.new_zeros(())
        return 1 - ((2 * overlap + self.smooth)[present] / (size + predicted + self.smooth)[present]).mean()  # 0 / 0 has no gradient


def _checked(logits: torch.Tensor, target: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class indices (BN, 0 where unknown), which of them are known (BN), and the classes that may be anywhere in the label's background
    (BC): those that nobody labelled in that scan.

    Raises:
        ValueError: if the shapes do not fit, or a class occurs in the label without being labelled.
    """
    label, labelled = target["label"], target["labelled"].bool()
    if label.shape != (len(logits), 1, *logits.shape[2:]) or labelled.shape != logits.shape[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} need a label B1[XYZ] and labelled BC, got {tuple(label.shape)}, {tuple(labelled.shape)}"
        )
    free = ~labelled
    free[:, 0] = False
    label = label.flatten(1).long()
    known = label != UNKNOWN
    label = label * known  # 255 is no index
    if free.gather(1, label).any():
        raise ValueError("a class occurs in the label that 'labelled' does not list")
    return label, known, free


def _log_of(
    p_truth: torch.Tensor, known: torch.Tensor, logits: torch.Tensor, label: torch.Tensor, merged: torch.Tensor, in_background: torch.Tensor
) -> torch.Tensor:
    """Logarithm of the probability of what the labels allow (BN), from the logits (BCN) where a float32 cannot hold it."""
    log_truth = p_truth.clamp(min=MIN_P).log()
    lost = (known & (p_truth < MIN_P)).nonzero(as_tuple=True)
    if not len(lost[0]):
        return log_truth
    of_lost = _log_truth(logits.movedim(1, -1)[lost], label[lost], merged[lost], in_background[lost[0]])
    return log_truth.index_put(lost, of_lost)


def _log_truth(logits: torch.Tensor, label: torch.Tensor, merged: torch.Tensor, in_background: torch.Tensor) -> torch.Tensor:
    """Log-probability of what the labels (N) allow, from logits (NC), where the probability is too small for a float32.

    Where the label is background, it allows the classes of `in_background` (1 or 0, NC) and the class `merged` (N).
    """
    background = in_background.bool().scatter(1, merged[:, None], True)
    allowed = torch.where(label[:, None] > 0, torch.zeros_like(background).scatter(1, label[:, None], True), background)
    return logits.masked_fill(~allowed, -torch.inf).logsumexp(1) - logits.logsumexp(1)
