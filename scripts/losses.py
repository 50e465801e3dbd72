"""Dice + cross-entropy that knows which structures of a scan are labelled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.engines.utils import PrepareBatch
from torch.nn.functional import nll_loss
from torch.nn.modules.loss import _Loss

from scripts.data.complete_labels import BEYOND, NO_BODY, NO_DISC, UNKNOWN
from scripts.labels import label_table
from scripts.network import KINDS


class PrepareSamples(PrepareBatch):
    """Batch of `RandSpineSamplesd` -> `(image, target, (), {"view": view})`, what `SpineNet` and `SpineLoss` take, on the device.

    What the batch lacks, patches or views, is an empty tensor, and so is its target.

    The target holds the views' `levels` (channel indices) with `labelled`, and the patches' `kinds` (see `network.KINDS`) with
    `merged`. Voxels that tell nothing are `UNKNOWN` in both; beyond the last labelled level the kind is unknown too, while the level
    is not: none of those that are labelled. Where there is no body but perhaps a disc, the kind is background, merged with disc.
    """

    def __init__(self) -> None:
        kinds = torch.full((256,), UNKNOWN, dtype=torch.uint8)
        kinds[: len(label_table())] = torch.tensor([KINDS.index(s.group) for s in label_table()], dtype=torch.uint8)
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
        label, labelled = target["label"].long(), target["labelled"].bool()
        if label.shape != (len(input), 1, *input.shape[2:]) or labelled.shape != input.shape[:2]:
            raise ValueError(
                f"logits {tuple(input.shape)} need a label B1[XYZ] and labelled BC, got {tuple(label.shape)}, {tuple(labelled.shape)}"
            )
        log_p = marginal_log_softmax(input.float(), labelled)
        if "merged" in target:
            log_p = merge_with_background(log_p, target["merged"].long())
        known = label != UNKNOWN
        cross_entropy = nll_loss(log_p, label[:, 0], ignore_index=UNKNOWN, reduction="sum") / known.sum().clamp(min=1)
        if not torch.isfinite(cross_entropy) and torch.isfinite(input).all():
            raise ValueError("a class occurs in the label that 'labelled' does not list")
        return self.lambda_dice * self._dice_loss(log_p.exp() * known, label * known) + self.lambda_ce * cross_entropy

    def _dice_loss(self, p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        channels = p.shape[1]
        p_of_truth = p.gather(1, label).flatten()  # sums by class index: no one-hot volume of all classes is built
        overlap = torch.zeros(channels, device=p.device).index_add(0, label.flatten(), p_of_truth)
        truth = torch.bincount(label.flatten(), minlength=channels)
        predicted = p.sum(dim=[0, *range(2, p.ndim)])
        present = truth > 0
        present[0] = False
        if not present.any():
            return p.new_zeros(())
        dice = (2 * overlap + self.smooth)[present] / (truth + predicted + self.smooth)[present]
        return 1 - dice.mean()


def marginal_log_softmax(logits: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, shape BC[XYZ], with the unlabelled classes (False in `labelled`, shape BC) summed into channel 0.

    An unlabelled class itself gets -inf.
    """
    if bool(labelled[:, 1:].all()):
        return logits.log_softmax(1)
    shape = (*labelled.shape, *[1] * (logits.ndim - 2))
    unlabelled = ~labelled.view(shape)
    in_background = unlabelled.clone()
    in_background[:, 0] = True
    background = logits.masked_fill(~in_background, -torch.inf).logsumexp(1, keepdim=True)
    foreground = logits[:, 1:].masked_fill(unlabelled[:, 1:], -torch.inf)
    return torch.cat([background, foreground], 1).log_softmax(1)


def merge_with_background(log_p: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, shape BC[XYZ], with that of one class per voxel (`merged`, B1[XYZ], 0 for none) added to channel 0.

    At that voxel the class itself gets -inf.
    """
    background = torch.where(merged > 0, torch.logaddexp(log_p[:, :1], log_p.gather(1, merged)), log_p[:, :1])
    classes = torch.arange(1, log_p.shape[1], device=log_p.device).view(1, -1, *[1] * (log_p.ndim - 2))
    return torch.cat([background, log_p[:, 1:].masked_fill(classes == merged, -torch.inf)], 1)
