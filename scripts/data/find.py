"""Find scans and masks in folders, and pair them by name."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import ignite.distributed as idist

from scripts.common.errors import CallError, UserError, counted, listed, shown, similar_path
from scripts.data.dicom import holds_series, is_dicom_file
from scripts.data.metaimage import HEADER_BYTES

logger = logging.getLogger(__name__)
SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
HEADERS, VOXELS = (".mhd", ".nhdr"), (".raw", ".zraw", ".raw.gz", ".gz")  # suffixes of scans of two files
VOXEL_FILE = re.compile(rb"^(?:ElementDataFile[ \t]*=|data ?file[ \t]*:)[ \t]*([^\r\n]*?) *\r?$", re.MULTILINE | re.IGNORECASE)
# suffixes of formats that are not searched for in folders; for scans of two files, that of the header
OTHER_SCANS = (".mgz", ".mgh", ".hdr", ".par", ".head", ".mnc", ".gipl", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip")
NO_DICOM = (*SUFFIXES, ".json", ".csv", ".tsv", ".txt", ".html", ".png", ".jpg", ".pdf")  # told by their names, without opening them
LABEL_POSTFIX = "_seg"
# names of masks in BIDS and of viewers
OTHER_MASKS = re.compile(r"(?:^|[._-])(seg\d*|seg[-_][\w-]+|dseg|mask|label(?:s|map)?|segm(?:entation)?)$", re.IGNORECASE)
LABEL_FOLDERS = {"images": ("labels", "masks"), "imagesTr": ("labelsTr",)}  # SPIDER and nnU-Net keep labels in a folder of their own


def case_name(path: str | Path) -> str:
    """Return a file name without its image suffix, other dots kept (`a/b.v2_T2w.nii.gz` -> `b.v2_T2w`), or the name of a DICOM folder."""
    name = Path(path).name
    return next((name[: -len(s)] for s in SUFFIXES if name.lower().endswith(s)), name)


def without_postfix(mask: Path) -> Path:
    """Return the path of a mask without `_seg` and the suffix of the file, which names its scan in pictures and pages."""
    return mask.with_name(case_name(mask).removesuffix(LABEL_POSTFIX))


def distinct_names(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return a distinct name for each path: its `case_name` behind as many of its folders as it takes."""
    parts = {str(path): [*Path(path).parent.parts, case_name(path)] for path in paths}
    names, depth = {}, 1
    while len(names) < len(parts):
        tails = {path: "/".join(path_parts[-depth:]) for path, path_parts in parts.items() if path not in names}
        often = Counter(tails.values())
        names |= {path: tail for path, tail in tails.items() if often[tail] == 1 or depth >= len(parts[path])}
        depth += 1
    return {path: names[path] for path in parts}


def has_twin(path: Path) -> bool:
    """Return True if another scan in its folder has the same stem: `a.mha` with an `a.nii.gz`, or with a folder `a` with a DICOM series."""
    stem = path.parent / case_name(path)
    if stem == path:
        return False  # a folder keeps its name
    files = (f for f in _spellings(stem) if f != path and os.path.lexists(f))
    # on a disk that ignores case, a.NII is only another name of a.nii
    return any(f.name.lower() != path.name.lower() or not os.path.samestat(f.lstat(), path.lstat()) for f in files) or (
        stem.is_dir() and is_dicom_folder(stem)
    )


def is_dicom_folder(folder: str | Path) -> bool:
    """Return True if a file directly in `folder` is a DICOM file (`DICM` after the 128-byte preamble)."""
    try:  # notes and an index may lie beside the slices
        return any(is_dicom_file(path) for path in sorted(Path(folder).iterdir()) if not is_no_slice(path))
    except PermissionError:
        return True  # it may be one: then the scan fails later and is not passed over in silence


def _is_bare_series(folder: str, files: Sequence[str]) -> bool:
    """Return True if files named like slices are slices, though without the preamble that `is_dicom_folder` looks for."""
    return any("." not in name or name.lower().endswith((".dcm", ".ima")) for name in files) and holds_series(folder)


def is_no_slice(path: Path) -> bool:
    """Return True if the name shows that a file is not a slice of a DICOM series."""
    return path.name.startswith(".") or path.name.lower().endswith(NO_DICOM)


def find_images(dataset_dir: str | Path) -> list[Path]:
    """Find every scan in `dataset_dir` and below, sorted.

    Scans are image files whose stem does not end in `_seg` and that do not lie in a folder of labels, folders with a DICOM series, and
    folders that cannot be looked into, which the reader then refuses. Links to folders are followed; each folder is searched once.

    A warning names scans in formats that are not searched for, and files that are named like masks in another way.

    Raises:
        CallError: if the folder does not exist or holds no scan.
    """
    root = Path(dataset_dir)
    if root.is_file():
        raise CallError(f"{root}: a file. --image takes one scan, --dataset_dir the folder that holds the scans.")
    if not root.is_dir():
        raise CallError(f"{root}: no such folder. Set --dataset_dir to the folder that holds the scans.{similar_path(root)}")
    files = _sorted_files(root)
    labels = {path for path in files.scans if is_in_label_folder(path)}
    found = [path for path in files.scans if path not in labels]
    passed_over = []
    if files.others:
        some = _first(files.others, root)
        passed_over.append(f"{counted(files.others, 'scan')} in formats that are not searched for {some}: convert to NIfTI (.nii.gz).")
    if files.masks:
        passed_over.append(f"{counted(files.masks, 'file')} named like masks {_first(files.masks, root)}: not taken for scans.")
    if not found:
        raise _nothing_found(root, passed_over, holds_labels=bool(labels), holds_seg=files.holds_seg)
    if idist.get_rank() == 0:  # one of several processes warns for all
        for line in passed_over:
            logger.warning(shown(f"{root}: {line}"))
    return sorted(found)


@dataclass
class _Files:
    """The files below a folder, sorted by their names."""

    scans: list[Path] = field(default_factory=list)  # also folders with a DICOM series, and folders that cannot be looked into
    masks: list[Path] = field(default_factory=list)  # named like those of BIDS and viewers
    others: list[Path] = field(default_factory=list)  # scans in formats that are not searched for
    holds_seg: bool = False  # there are masks whose names end in `_seg`


def _sorted_files(root: Path) -> _Files:
    result = _Files()
    closed: list[OSError] = []
    for folder, files in folders_of(root, closed.append):
        images = [Path(folder, f) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
        scans = [path for path in images if not case_name(path).endswith(LABEL_POSTFIX)]
        result.holds_seg |= len(scans) < len(images)
        result.masks += [path for path in scans if OTHER_MASKS.search(case_name(path))]
        result.scans += [path for path in scans if not OTHER_MASKS.search(case_name(path))]
        result.others += [path for path in map(Path(folder).joinpath, files) if _is_other_scan(path)]
        if len(files) > len(images) and (is_dicom_folder(folder) or (not images and _is_bare_series(folder, files))):
            result.scans.append(Path(folder))
    result.scans += [Path(error.filename) for error in closed]
    return result


def _nothing_found(root: Path, passed_over: Sequence[str], holds_labels: bool, holds_seg: bool) -> CallError:
    if holds_labels and not passed_over:
        return CallError(f"{root}: no scans found, only labels beside a folder of images. --image takes one of the files.")
    lines = [f"{root}: no scans found. Expected {', '.join(SUFFIXES)} files or folders with a DICOM series."]
    if holds_seg:
        lines.append("Files whose names end in _seg are masks, not scans.")
    return CallError(" ".join([*lines, *passed_over]))


def _first(paths: Sequence[Path], root: Path) -> str:
    return f"({listed(path.relative_to(root) for path in sorted(paths))})"


def find_masks(dataset_dir: str | Path) -> list[Path]:
    """Find every label file in `dataset_dir` and below, sorted: stems that end in `_seg`, and files in a folder of labels beside `images`.

    Raises:
        CallError: if the folder does not exist or holds none.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise CallError(f"{root}: no such folder. Set --dataset_dir to the folder that holds the masks.{similar_path(root)}")
    files = [Path(folder, name) for folder, names in folders_of(root, _refuse) for name in names if name.lower().endswith(SUFFIXES)]
    found = [f for f in files if not f.name.startswith(".") and (case_name(f).endswith(LABEL_POSTFIX) or is_in_label_folder(f))]
    if not found:
        raise CallError(f"{root}: no masks found. Expected {', '.join(LABEL_POSTFIX + suffix for suffix in SUFFIXES)} files.")
    return sorted(found)


def _is_other_scan(path: Path) -> bool:
    """Return True if the name is that of a scan in a format that is not searched for, and not that of a label."""
    if not path.name.lower().endswith(OTHER_SCANS) or path.name.startswith("."):
        return False
    return f"{LABEL_POSTFIX}." not in path.name and not is_in_label_folder(path)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be looked into ({error.strerror}). Change its permissions, or leave it out.")


def folders_of(root: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder that is not hidden with the names of its files; linked folders come last and once, as links may form a circle."""
    visited: set[str] = set()
    waiting = [str(root)]
    while waiting:
        links = []
        for start in waiting:
            for folder, subfolders, files in os.walk(start, onerror=onerror):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                if (real := os.path.realpath(folder)) in visited:
                    subfolders[:] = []
                    continue
                visited.add(real)
                links += [path for name in subfolders if os.path.islink(path := os.path.join(folder, name))]
                yield folder, files
        waiting = links


def find_label(image: str | Path, passed_over: Callable[[Path], bool] | None = None) -> Path | None:
    """Find the label file of `image` by name: the first one that is not `passed_over`, None if there is none.

    For `<case>_<contrast>`: `<case>_<contrast>_seg` in its folder, or `<case>_seg`, unless `<case>` is a scan itself; or the same name, or
    one of these two, in a sibling folder `labels` or `masks` of `images` (`labelsTr` of `imagesTr`, where nnU-Net's `_0000` is left out).
    For `sub-01/...` of BIDS: `<stem>_seg` or `<stem>_dseg` in the same folder of `derivatives/<any>/`, with or without `_label-spine` or
    `_desc-<any>` between (`_label-SC` is the cord).
    """
    image = Path(image)
    stem = case_name(image)
    case = stem.rsplit("_", 1)[0]
    beside = [f"{image.name}{LABEL_POSTFIX}", f"{stem}{LABEL_POSTFIX}"]  # a mask has the first name where two scans share a stem
    if case not in ("", stem) and not _file(image.with_name(case)):
        beside.append(f"{case}{LABEL_POSTFIX}")
    apart = [beside[0], stem, *beside[1:]]
    apart.append(without_channel(image))
    folders = [image.parent.parent / folder for folder in LABEL_FOLDERS.get(image.parent.name, ())]
    candidates = [*(image.parent / name for name in beside), *(folder / name for name in apart for folder in folders)]
    for parent in image.parents:
        if parent.name.startswith("sub-"):  # BIDS keeps labels in a tree of their own
            for folder in sorted(parent.parent.glob(f"derivatives/*/{glob.escape(image.parent.relative_to(parent.parent).as_posix())}")):
                candidates += [folder / f"{stem}_{word}" for word in ("seg", "dseg")]
                others = re.compile(rf"{re.escape(stem)}(?:_label-spine|_desc-[A-Za-z0-9]+)+_d?seg")
                candidates += sorted({folder / case_name(file) for file in folder.iterdir() if others.fullmatch(case_name(file))})
    files = (file for candidate in candidates if (file := _file(candidate)))
    return next((file for file in files if not (passed_over and passed_over(file))), None)


def without_channel(image: Path) -> str:
    """Return the stem of a scan, in a folder of nnU-Net without the number of its channel (`_0000`)."""
    stem = case_name(image)
    return re.sub(r"_\d{4}$", "", stem) if image.parent.name == "imagesTr" else stem


def find_image(label: Path) -> Path | None:
    """Find the scan of a label file by name, the reverse of `find_label`; None if there is none."""
    stem = without_postfix(label).name
    folders = [label.parent, *(label.parent.parent / images for images, labels in LABEL_FOLDERS.items() if label.parent.name in labels)]
    near = (path for folder in folders for path in sorted(folder.glob(f"{glob.escape(stem)}*")) if path.name.lower().endswith(SUFFIXES))
    scans = (path for path in near if path != label and not OTHER_MASKS.search(case_name(path)))
    series = (path for folder in folders for path in sorted(folder.glob(f"{glob.escape(stem)}*")) if path.is_dir())
    # files before folders, and nothing is read after the right one
    found = chain(scans, (path for path in series if is_dicom_folder(path)))
    return next((path for path in found if find_label(path) == label), None)


def _file(stem: Path) -> Path | None:
    """Return the image file with that stem, or None."""
    return next((path for path in _spellings(stem) if path.is_file()), None)


def _spellings(stem: Path) -> Iterator[Path]:
    """Yield the names that an image file of that stem may have, with the suffix in small letters or in capitals.

    Listing the folder instead would take long if it holds thousands of files.
    """
    for suffix in SUFFIXES:
        yield stem.with_name(stem.name + suffix)
        yield stem.with_name(stem.name + suffix.upper())


def files_of_voxels(scan: Path) -> list[Path]:
    """Return the voxel files of a header (`.mhd`, `.nhdr`): the one that it names and those with its stem.

    Files of single slices (`LIST`, `%03d`) are not listed.
    """
    if scan.suffix.lower() not in HEADERS or not scan.is_file():
        return []
    with scan.open("rb") as handle:
        named = VOXEL_FILE.search(handle.read(HEADER_BYTES))
    names = [os.fsdecode(named[1])] if named else []
    names += [scan.stem + suffix for suffix in VOXELS]
    return [*dict.fromkeys(path for path in map(scan.parent.joinpath, names) if os.path.isfile(path))]


def is_in_label_folder(path: Path) -> bool:
    """Return True if a file lies in a folder of labels beside one of images, such as `masks/1_t2.mha` beside `images`."""
    return any(path.parent.name in labels and (path.parent.parent / images).is_dir() for images, labels in LABEL_FOLDERS.items())
