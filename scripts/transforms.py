"""Dictionary transforms of the bundle; they leave the work to plain functions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform, SaveImaged, Spacingd, SpatialCrop
from monai.utils import SpaceKeys, convert_to_numpy
from nibabel.affines import voxel_sizes

from scripts.common.errors import UserError
from scripts.data.complete_labels import complete_labels
from scripts.data.masks import MaskLayout, beside, write_label_map
from scripts.data.own_masks import check_replaceable, signature
from scripts.data.resampling import AxisResample
from scripts.data.scans import read_scan
from scripts.data.volumes import grid_mismatch, not_on_grid, read_volume
from scripts.labels import channels_from_verse, check_scheme, decode, encode, label_table, names_disc, structure
from scripts.levels.cut import cut_faces, reported_cuts, seen_box, view_box
from scripts.levels.logits import SpineLogits, level_logits
from scripts.levels.name_levels import NamedLevels, name_levels
from scripts.levels.postprocess import clean_label_map
from scripts.levels.restore import ClassLogits, restore_label_map
from scripts.measure.spine import measure_spine


class LoadImageVolumesd(LoadImaged):
    """Read scans (`read_scan`) and label maps (`read_volume`) as float32, shape XYZ, with their grid and nothing else of their headers.

    `notes` in the metadata holds a line for each remark of the reader. Headers may hold the patient's name, so they are dropped.
    It is a `LoadImaged` for MONAI Label, which makes such a loader add `<key>_meta_dict`, and for MONAI Deploy, which drops the loader.

    Args:
        keys: files, or folders with a DICOM series.
        scan_key: which of the keys is the scan; the others are label maps.

    Raises:
        ScanError: for a file that cannot be read, and for a scan that cannot be segmented.
    """

    def __init__(self, keys: KeysCollection, scan_key: str = "image") -> None:
        super().__init__(keys, image_only=True)
        self.scan_key = scan_key

    def __call__(self, data: Mapping[Hashable, str], reader: object = None) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            volume = (read_scan if key == self.scan_key else read_volume)(d[key])
            meta = {
                "filename_or_obj": str(d[key]),
                "original_affine": volume.affine,
                "spatial_shape": np.array(volume.data.shape),
                "original_channel_dim": float("nan"),  # no channel axis
                "space": SpaceKeys.RAS,
                "notes": "\n".join(volume.notes),
            }
            array = torch.from_numpy(np.asarray(volume.data, np.float32))
            d[key] = MetaTensor(array, affine=torch.from_numpy(np.array(volume.affine, np.float64)), meta=meta)
            if not self._loader.image_only:
                d[f"{key}_meta_dict"] = dict(d[key].meta)
        return d


class KeysOnlySpacingd(Spacingd):
    """`Spacingd` that ignores all items but its keys, and interpolates linearly with little memory (`AxisResample`).

    MONAI 1.6 takes every other item whose name starts with `image_` for metadata, and fails if it is something else, such as MONAI
    Label's `image_path`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.spacing_transform.sp_resample = AxisResample(padding_mode="border")

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict:
        return {**data, **super().__call__({key: data[key] for key in self.key_iterator(data)}, lazy)}


class CropBlankBordersd(MapTransform):
    """Crop blank slices at the ends of a scan, which come from padding, masking or reslicing.

    They change what the network answers: with 200 mm of them around a scan it gives vertebrae other levels. It has seen narrow borders in
    training, so these stay.

    Args:
        keys: the scan, and label maps on its grid, shape CXYZ.
        source_key: the scan.
        least_mm: a narrower border stays.
    """

    def __init__(self, keys: KeysCollection, source_key: str = "image", least_mm: float = 20.0) -> None:
        super().__init__(keys)
        self.source_key = source_key
        self.least_mm = least_mm

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        d = dict(data)
        scan, box = d[self.source_key], []
        for seen, size, step_mm in zip(seen_box(convert_to_numpy(scan[0])), scan.shape[1:], scan.pixdim.tolist()):
            start = seen.start if seen.start * step_mm >= self.least_mm else 0
            box.append(slice(start, seen.stop if (size - seen.stop) * step_mm >= self.least_mm else size))
        if box != [slice(0, size) for size in scan.shape[1:]]:  # most scans have no such border, and are not copied
            d |= {key: SpatialCrop(roi_slices=box)(d[key]) for key in self.key_iterator(d)}
        return d


class ScaleIntensitySampledPercentilesd(MapTransform):
    """`ScaleIntensityRangePercentilesd` to the range 0 to 1, with clipping, that takes the percentiles of a sample of evenly spread voxels.

    Percentiles of all voxels would take a tenth of the time of a scan.

    Args:
        keys: the scans, shape CXYZ.
        lower, upper: percentiles that become 0 and 1.
        voxels: approximate size of the sample; a smaller scan is used whole.
    """

    def __init__(self, keys: KeysCollection, lower: float, upper: float, voxels: int = 2**20) -> None:
        super().__init__(keys)
        self.percentiles = (lower, upper)
        self.voxels = voxels

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            step = max(1, round((d[key].numel() / self.voxels) ** (1 / 3)))
            sample = convert_to_numpy(d[key])[:, ::step, ::step, ::step]
            low, high = np.percentile(sample, self.percentiles).tolist()
            d[key] = (d[key] - low).div_((high - low) or 1.0).clamp_(0.0, 1.0)
        return d


class EncodeLabelsd(MapTransform):
    """Convert the numbers of a label file to channel indices, and the list of labelled structures to one boolean per channel.

    A scan without `labelled` counts as labelled for the structures that its label file holds.

    Args:
        keys: the label map, shape 1XYZ.
        ref_key: the scan; if it is there, the label file must be on its grid.
        labelled_key: item with the VerSe numbers that are annotated in this scan; becomes a boolean tensor, shape C.
        label_scheme: scheme of the numbers in the file, unless the item `label_scheme` names another: `verse`, `channel`, `spider` or
            `totalspineseg`.

    Raises:
        UserError: for values that the label table lacks, or a label on another grid; the message names the file.
    """

    def __init__(
        self, keys: KeysCollection = "label", ref_key: str = "image", labelled_key: str = "labelled", label_scheme: str = "verse"
    ) -> None:
        check_scheme(label_scheme)  # before the first scan
        super().__init__(keys)
        self.ref_key = ref_key
        self.labelled_key = labelled_key
        self.label_scheme = label_scheme

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        d = dict(data)
        listed = d.get(self.labelled_key) or []
        for key in self.key_iterator(d):
            where = str(d[key].meta.get("filename_or_obj", key))
            mismatch = self.ref_key in d and _grid_mismatch(d[self.ref_key], d[key])
            if mismatch:
                raise UserError(not_on_grid(where, d[self.ref_key].meta.get("filename_or_obj", "its scan"), mismatch))
            channels = encode(d[key].numpy(), where, d.get("label_scheme", self.label_scheme))
            labelled = np.zeros(len(label_table()), bool)
            labelled[[0, *np.unique(channels), *channels_from_verse(listed, where)]] = True
            d[key] = MetaTensor(torch.from_numpy(channels), meta=d[key].meta)
            d[self.labelled_key] = torch.from_numpy(labelled)
        return d


class CompleteLabelsd(MapTransform):
    """Apply `complete_labels` to label maps of channel indices, shape 1XYZ, and to `labelled_key` (boolean, shape C)."""

    def __init__(self, keys: KeysCollection = "label", labelled_key: str = "labelled") -> None:
        super().__init__(keys)
        self.labelled_key = labelled_key

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            label, labelled = complete_labels(d[key][0].numpy(), d[self.labelled_key].numpy(), tuple(d[key].pixdim.tolist()))
            d[key] = MetaTensor(torch.from_numpy(label)[None], meta=d[key].meta)
            d[self.labelled_key] = torch.from_numpy(labelled)
        return d


class NameLevelsd(MapTransform):
    """Apply `name_levels` to the output of the inferer, and report which faces of the scan, or of its blank borders, cut a structure.

    The faces are `cut_by_view` in the row of the structure.

    Args:
        keys: level logits (CXYZ) on the working grid, or what `CoarseToFineInferer` returns for a box of it; becomes `NamedLevels`.
        ref_key: the preprocessed image.
        min_instance_mm3: smaller pieces have no vote and become background.
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image", min_instance_mm3: float = 300.0) -> None:
        super().__init__(keys)
        self.ref_key = ref_key
        self.min_instance_mm3 = min_instance_mm3

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        d = dict(data)
        image = d[self.ref_key]
        view = view_box(image[0].cpu().numpy())
        for key in self.key_iterator(d):
            affine = _affine_of(d[key], image)
            # first voxel of the logits' box in the image
            offset = np.rint(np.linalg.solve(np.asarray(image.affine, np.float64), affine)[:3, 3]).astype(int)
            d[key] = named = name_levels(SpineLogits.of(d[key]), affine, self.min_instance_mm3, max(0, view[2].start - offset[2]))
            cut = cut_faces(view, offset, named.channel_map, voxel_sizes(affine))
            for row in named.report["structures"]:
                row["cut_by_view"] = cut.get(row["name"], [])
        return d


class RestoreGridd(MapTransform):
    """Convert class logits to a label map (channel indices, 1XYZ, uint8) on the grid that `ref_key` was read from.

    Args:
        keys: `NamedLevels`, whose report goes into the metadata as `report`; or level logits, as `NameLevelsd` takes them, which are
            decided voxel by voxel; or other logits, shape CXYZ, on the working grid or, with their own affine, on a box of it.
        ref_key: the preprocessed image; its metadata hold the working grid, the original grid and the file name.
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image") -> None:
        super().__init__(keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, NamedLevels | torch.Tensor]) -> dict:
        d = dict(data)
        image = d[self.ref_key]
        target_affine, shape = _original_grid(image)
        meta = {**image.meta, "affine": torch.as_tensor(target_affine)}
        for key in self.key_iterator(d):
            if isinstance(d[key], NamedLevels):
                logits, affine, report = d[key].logits, d[key].affine, d[key].report
            else:
                logits, affine, report = ClassLogits.of(level_logits(d[key])), _affine_of(d[key], image), None
            label = restore_label_map(logits, affine, target_affine, shape)
            d[key] = MetaTensor(label[None], meta={**meta, "report": report})
        return d


def _original_grid(image: MetaTensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the affine and shape of the scan before the first transform, also where MONAI Deploy loaded it, which records neither."""
    first = image.applied_operations[0] if image.applied_operations else {}
    affine = image.meta.get("original_affine", first.get("extra_info", {}).get("original_affine"))
    shape = image.meta.get("spatial_shape", first.get("orig_size"))
    return np.asarray(affine, np.float64), tuple(int(n) for n in shape)


def _affine_of(logits: torch.Tensor, image: MetaTensor) -> np.ndarray:
    """Return the affine of the logits: their own, if they cover a box of the image, or that of the image.

    Raises:
        ValueError: if they have no affine and are not on the image's grid.
    """
    if not isinstance(logits, MetaTensor) and logits.shape[1:] != image.shape[1:]:
        raise ValueError(f"logits of shape {tuple(logits.shape[1:])} without an affine do not fit the image, {tuple(image.shape[1:])}")
    return np.asarray(logits.affine if isinstance(logits, MetaTensor) else image.affine, np.float64)


def _grid_mismatch(a: MetaTensor, b: MetaTensor) -> str:
    (affine_a, shape_a), (affine_b, shape_b) = _original_grid(a), _original_grid(b)
    return grid_mismatch(shape_a, affine_a, shape_b, affine_b)


class CleanLabelMapd(MapTransform):
    """Apply `clean_label_map`, which explains the thresholds, to label maps of channel indices, shape 1XYZ."""

    def __init__(self, keys: KeysCollection = "pred", min_instance_mm3: float = 300.0, min_speck_mm3: float = 20.0) -> None:
        super().__init__(keys)
        self.thresholds = {"min_instance_mm3": min_instance_mm3, "min_speck_mm3": min_speck_mm3}

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            cleaned = clean_label_map(d[key][0].numpy(), d[key].pixdim.tolist(), **self.thresholds)
            d[key] = MetaTensor(torch.from_numpy(cleaned)[None], meta=d[key].meta)
        return d


class MeasureSpined(MapTransform):
    """Apply `measure_spine` to label maps of channel indices, shape 1XYZ, and add the measures to their `report`, if they have one.

    The measures of a structure are `measures` in its row, empty if it could not be measured; those of the spine are `spine`. A disc
    between two bodies that was not drawn gets a row of its own.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            if report := d[key].meta.get("report"):
                cut = reported_cuts(report)
                found = measure_spine(d[key][0].numpy(), d[key].affine.numpy(), cut)
                rows = [{**row, "measures": found.structures.get(row["name"], {})} for row in report["structures"]]
                undrawn = [name for name in found.structures if names_disc(name) and name not in cut]
                rows += [{"name": name, "cut_by_view": [], "measures": found.structures[name]} for name in undrawn]
                rows.sort(key=lambda row: structure(row["name"]).channel)
                d[key] = MetaTensor(
                    d[key].as_tensor(), meta={**d[key].meta, "report": {**report, "structures": rows, "spine": found.spine}}
                )
        return d


class SaveImageLabelsd(SaveImaged):
    """Write label maps as `<stem>_seg.nii.gz` in the numbering of `label_scheme`; the data keep channel indices.

    The file appears whole or not at all. MONAI Label and Deploy drop every transform with SaveImage in its name and save themselves.

    Args:
        keys: label maps with channel indices, shape 1XYZ.
        output_dir: folder of the masks; folders below `data_root_dir` are repeated there.
        data_root_dir: the folder that was searched for scans.
        label_scheme: `verse`, `channel`, `spider` or `totalspineseg`.
        overwrite: replace also files that this bundle has not written, or that were changed since.

    Raises:
        ScanError: for such a file, without `overwrite`.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str, data_root_dir: str = "", label_scheme: str = "verse", overwrite: bool = False
    ) -> None:
        check_scheme(label_scheme)  # before the first scan
        super().__init__(keys, output_dir=output_dir, folder_layout=MaskLayout(output_dir, data_root_dir))
        self.label_scheme = label_scheme
        self.overwrite = overwrite

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        for key in self.key_iterator(dict(data)):
            label = data[key]
            path = self.saver.folder_layout.filename(label.meta["filename_or_obj"])
            if not self.overwrite:
                check_replaceable(path, str(label.meta["filename_or_obj"]))
            beside(path, ".json").unlink(missing_ok=True)  # an older report describes the mask that is replaced now
            values = decode(label[0].numpy(), self.label_scheme)
            label.meta["mask_sha256"] = write_label_map(values, label.affine.numpy(), path, signature(values))
            label.meta["saved_to"] = str(path)
            label.meta["label_scheme"] = self.label_scheme
        return dict(data)
