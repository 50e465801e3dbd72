"""Make the release: a zip as `monai.bundle.download` unpacks it, its checksum, and the same files as a folder to upload from."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from functools import partial
from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.files import sha256_of, write_whole
from scripts.common.preflight import check_writable

NAME = "spine_mri_segmentation"  # name of the folder in the zip, by which clients find the bundle
# files of the release; left out are tests and their scripts, caches, outputs and files that clients write into a bundle
PARTS = (
    "LICENSE", "README.md", "requirements.txt", "configs/metadata.json", "configs/*.yaml", "configs/*.conf", "docs/**/*", "models/model.pt",
    "scripts/**/*.py", "scripts/**/*.sh",
)  # fmt: skip
LEFT_OUT = ("scripts/test.sh",)
LIMIT_BYTES = 25e6  # for one file in the model zoo
TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold; always the same, so that the same files give the same zip


def package(bundle_root: str | Path, output_dir: str | Path) -> Path:
    """Write `<name>_v<version>.zip`, `<name>_v<version>.zip.sha256` (as `sha256sum --check` reads it) and the folder `<name>`.

    Each of the three appears whole or not at all. The zip depends on nothing but the contents of the files. The folder may be changed
    later: `push_to_hf_hub` replaces its README.md by the model card.

    Args:
        bundle_root: folder of the bundle.
        output_dir: folder for the release; that of an earlier call is replaced.

    Returns:
        path of the zip.

    Raises:
        UserError: without weights or another part, for a file too large for the model zoo, a version that the changelog does not
            explain, or if a folder that is no export would be replaced.
    """
    root, output_dir = Path(bundle_root), Path(output_dir)
    version = _version(root / "configs" / "metadata.json")
    files = release_files(root)
    folder, archive = output_dir / NAME, output_dir / f"{NAME}_v{version}.zip"
    _check_replaceable(folder, root, files)
    check_writable(str(output_dir), "release_dir")
    write_whole(archive, partial(_write_zip, root, files))
    line = f"{sha256_of(archive)}  {archive.name}\n"
    write_whole(archive.with_name(f"{archive.name}.sha256"), partial(Path.write_text, data=line, encoding="utf-8", newline="\n"))
    _write_folder(root, files, folder)
    print(f"{archive}: {len(files)} files, {archive.stat().st_size / 1e6:.1f} MB\nsha256 {line.split()[0]}")
    return archive


def release_files(root: Path) -> list[str]:
    """Return the sorted paths of all released files, relative to the bundle and with slashes.

    Raises:
        UserError: if a part is missing, or a file has 25 MB or more.
    """
    if not (root / "models" / "model.pt").is_file():
        raise UserError(f"{root / 'models' / 'model.pt'}: no weights there. Train some with configs/train.yaml and copy them to it.")
    names = set()
    for part in PARTS:
        found = {p.relative_to(root).as_posix() for p in root.glob(part) if p.is_file()}
        if not found:
            raise UserError(f"{root}: no {part} there. Set --bundle_root to the bundle's folder.")
        names |= {name for name in found if name not in LEFT_OUT and not _is_hidden_or_cache(name)}
    for name in sorted(names):
        size = (root / name).stat().st_size
        if size >= LIMIT_BYTES:
            raise UserError(f"{root / name}: {size / 1e6:.1f} MB, but the model zoo takes files below {LIMIT_BYTES / 1e6:.0f} MB")
    return sorted(names)


def _is_hidden_or_cache(name: str) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in name.split("/"))


def _version(metadata_file: Path) -> str:
    if not metadata_file.is_file():
        raise UserError(f"{metadata_file}: not there. Set --bundle_root to the bundle's folder.")
    metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
    if metadata["version"] not in metadata["changelog"]:
        raise UserError(f"{metadata_file}: version {metadata['version']} is not in the changelog. Say there what is new in it.")
    return metadata["version"]


def _check_replaceable(folder: Path, root: Path, files: list[str]) -> None:
    """Refuse to delete a folder that is not an earlier export, holds other files, or is the bundle itself.

    Raises:
        UserError: for such a folder.
    """
    target, source = folder.resolve(), root.resolve()
    is_export = (folder / "configs" / "metadata.json").is_file() and not (folder / ".git").exists()
    if target in (source, *source.parents) or (folder.exists() and not is_export):
        raise UserError(f"{folder}: exists already and is not an export of this bundle. Set --release_dir to another folder.")
    released = {f"{NAME}/{name}" for name in files}.union(*map(_zipped, folder.parent.glob(f"{NAME}_v*.zip")))
    there = (p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
    if foreign := [p for p in there if p.relative_to(folder.parent).as_posix() not in released]:
        raise UserError(f"{foreign[0]}: not part of a release. Move it, or set --release_dir to another folder.")


def _zipped(archive: Path) -> list[str]:
    """Return the names in a zip; none for a file that is no zip."""
    if not zipfile.is_zipfile(archive):
        return []
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


def _write_zip(root: Path, files: list[str], path: Path) -> None:
    # stored, because zlib does not deflate to the same bytes in every version, and weights hardly shrink
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in files:
            entry = zipfile.ZipInfo(f"{NAME}/{name}", TIMESTAMP)
            entry.create_system = 3  # Unix, on whatever system this runs
            entry.external_attr = (stat.S_IFREG | (0o755 if name.endswith(".sh") else 0o644)) << 16
            archive.writestr(entry, (root / name).read_bytes())


def _write_folder(root: Path, files: list[str], folder: Path) -> None:
    partial_folder = folder.with_name(f".partial_{folder.name}")
    shutil.rmtree(partial_folder, ignore_errors=True)
    try:
        for name in files:
            (partial_folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, partial_folder / name)
        if folder.exists():
            shutil.rmtree(folder)
        partial_folder.rename(folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
