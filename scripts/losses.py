"""Losses on partly labelled scans: Dice plus cross-entropy over the structures that are labelled in each scan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.engines.utils import PrepareBatch
from torch.nn.modules.loss import _Loss

from scripts.data.complete_labels import BEYOND, NO_BODY, NO_DISC, UNKNOWN
from scripts.labels import label_table
from scripts.network import KINDS

MIN_P = 1e-37  # near the smallest normal float32; the logarithm of a smaller probability is computed from the logits


class PrepareSamples(PrepareBatch):
    """Turn a batch of `RandSpineSamplesd` into `(image, target, (), {"view": view})` on the device, for `SpineNet` and `SpineLoss`.

    A batch without patches or without views gets empty tensors in their place, for the target too.

    The target holds the views' `levels` (channel indices) with `labelled`, and the patches' `kinds` (see `network.KINDS`) with
    `merged`. Voxels of which nothing is known are `UNKNOWN` in both. Beyond the last labelled level the kind is unknown too, but the
    level is known to be none of the labelled ones. Where there is no body but perhaps a disc, the kind is background, merged with disc.
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
        missing = batch["labelled"].new_empty(len(batch["labelled"]), 0)
        image, label = batch.get("image", missing), batch.get("label", missing)
        view, levels = batch.get("view", missing), batch.get("view_label", missing)
        kinds = self.kind_of_value.to(label.device)[label.long()]
        merged = self.merged_of_value.to(label.device)[label.long()]
        levels = levels.masked_fill(levels == BEYOND, 0).masked_fill((levels == NO_BODY) | (levels == NO_DISC), UNKNOWN)
        return image, {"kinds": kinds, "merged": merged, "levels": levels, "labelled": batch["labelled"]}, (), {"view": view}


class SpineLoss(_Loss):
    """Sum of a loss on the levels of the views and a loss on the kinds of the patches; a batch without either lacks that term.

    Args:
        levels, kinds: losses that take logits and a target like that of `MarginalDiceCELoss`.
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

    Voxels whose label is `UNKNOWN` (255) are ignored.

    Dice is taken over the batch (sums over all its voxels) and averaged over the foreground classes that occur in the target;
    a predicted class that does not occur there is penalised by the cross-entropy alone.

    Args:
        lambda_dice: weight of the Dice term.
        lambda_ce: weight of the cross-entropy term.
        smooth: constant added to numerator and denominator of the Dice.
    """

    def __init__(self, lambda_dice: float = 1.0, lambda_ce: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        if min(lambda_dice, lambda_ce, smooth) < 0:
            raise ValueError(f"weights and smooth must not be negative, got {lambda_dice}, {lambda_ce}, {smooth}")
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.smooth = smooth

    def forward(self, input: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted sum of both terms, a scalar.

        Args:
            input: logits, shape BC[XYZ], channel 0 is the background.
            target: `label`, class indices, shape B1[XYZ]; `labelled`, which classes are annotated, boolean, shape BC; optionally
                `merged`, shape B1[XYZ], per voxel one class that the network may answer where the label is background, 0 for none.

        Raises:
            ValueError: if the shapes do not fit, or a class occurs in the label without being labelled.
        """
        label, known, unlabelled = _checked(input, target)
        # time goes into memory traffic, so few tensors of all classes and voxels are made
        logits = input.float().flatten(2)
        p = logits.softmax(1)
        voxel_weight = known.float()

        # where the label is background, the network may answer any unlabelled class as well (marginal loss)
        in_background = unlabelled.float()
        in_background[:, 0] = 1
        p_background = (p * in_background[..., None]).sum(1)
        predicted = ((p * voxel_weight[:, None]).sum(2) * ~unlabelled).sum(0)

        # it may also answer the class that the voxel is merged with: if that is labelled, its probability moves to the background
        # (that of an unlabelled class is there already)
        merged = torch.zeros_like(label)
        if "merged" in target:
            merged = target["merged"].flatten(1).long()
            labelled_foreground = ~unlabelled
            labelled_foreground[:, 0] = False
            p_merged = p.gather(1, merged[:, None])[:, 0] * labelled_foreground.gather(1, merged)
            p_background = p_background + p_merged
            predicted = predicted.index_add(0, merged.flatten(), -(p_merged * voxel_weight).flatten())

        p_truth = torch.where(label > 0, p.gather(1, label[:, None])[:, 0], p_background)
        log_truth = _log_of(p_truth, known, logits, label, merged, in_background)
        cross_entropy = -(log_truth * voxel_weight).sum() / known.sum().clamp(min=1)
        overlap = torch.zeros_like(predicted).index_add(0, label.flatten(), (p_truth * voxel_weight).flatten())
        size = torch.bincount(label.flatten(), minlength=len(predicted))
        return self.lambda_dice * self._dice_loss(overlap, size, predicted) + self.lambda_ce * cross_entropy

    def _dice_loss(self, overlap: torch.Tensor, size: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Return 1 - mean Dice over the foreground classes whose `size` is not 0; all three arguments have the shape C."""
        present = size > 0
        present[0] = False
        if not present.any():
            return predicted.new_zeros(())
        # classes are chosen before the division, because 0 / 0 has no gradient
        return 1 - ((2 * overlap + self.smooth)[present] / (size + predicted + self.smooth)[present]).mean()


def _checked(logits: torch.Tensor, target: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the class indices (BN, 0 where unknown), the voxels where they are known (BN), and the foreground classes that nobody
    labelled in that scan (BC), which may lie anywhere in the label's background.

    Raises:
        ValueError: if the shapes do not fit, or a class occurs in the label without being labelled.
    """
    label, labelled = target["label"], target["labelled"].bool()
    if label.shape != (len(logits), 1, *logits.shape[2:]) or labelled.shape != logits.shape[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} need a label B1[XYZ] and labelled BC, got {tuple(label.shape)}, {tuple(labelled.shape)}"
        )
    unlabelled = ~labelled
    unlabelled[:, 0] = False
    label = label.flatten(1).long()
    known = label != UNKNOWN
    label = label * known  # 255 is no index
    if unlabelled.gather(1, label).any():
        raise ValueError("a class occurs in the label that 'labelled' does not list")
    return label, known, unlabelled


def _log_of(
    p_truth: torch.Tensor, known: torch.Tensor, logits: torch.Tensor, label: torch.Tensor, merged: torch.Tensor, in_background: torch.Tensor
) -> torch.Tensor:
    """Return the logarithm of `p_truth` (BN), computed from the logits (BCN) where a float32 cannot hold the probability."""
    log_truth = p_truth.clamp(min=MIN_P).log()
    tiny = (known & (p_truth < MIN_P)).nonzero(as_tuple=True)
    if not len(tiny[0]):
        return log_truth
    exact = _log_truth(logits.movedim(1, -1)[tiny], label[tiny], merged[tiny], in_background[tiny[0]])
    return log_truth.index_put(tiny, exact)


def _log_truth(logits: torch.Tensor, label: torch.Tensor, merged: torch.Tensor, in_background: torch.Tensor) -> torch.Tensor:
    """Return the log-probability (N) of the classes that the labels (N) allow, from logits (NC).

    A foreground label allows its own class; background allows the classes of `in_background` (1 or 0, NC) and the class `merged` (N).
    """
    if_background = in_background.bool().scatter(1, merged[:, None], True)
    if_foreground = torch.zeros_like(if_background).scatter(1, label[:, None], True)
    allowed = torch.where(label[:, None] > 0, if_foreground, if_background)
    return logits.masked_fill(~allowed, -torch.inf).logsumexp(1) - logits.logsumexp(1)
