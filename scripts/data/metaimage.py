"""Check the header of a MetaImage: ITK would print its own lines, request any amount of memory, or report a missing file."""

from __future__ import annotations

import math
import re
from pathlib import Path

from scripts.common.errors import EXPORT_AGAIN, ScanError

BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}  # bytes of each ElementType, without its MET_
NEEDED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
HEADER_BYTES = 1 << 16  # no header is longer


def check_metaimage(path: Path) -> None:
    """Refuse a `.mha` or `.mhd` file with a bad header. Messages quote no value of it, because one may be a patient's name.

    Raises:
        ScanError: if a field is missing or invalid, or the file of voxels is missing or too short.
    """
    with path.open("rb") as handle:
        fields, start = _read_header(handle.read(HEADER_BYTES))
    if missing := [key for key in NEEDED if key not in fields]:
        raise _damaged(path, f"its header lacks {', '.join(missing)}")
    try:
        shape, channels = [int(n) for n in fields["DimSize"].split()], int(fields.get("ElementNumberOfChannels", "1"))
        if len(shape) != int(fields["NDims"]) or min([channels, *shape]) < 1:
            raise ValueError
    except ValueError:
        raise _damaged(path, "NDims and DimSize in its header are not those of an image") from None
    size = BYTES.get(fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY"))
    if size is None:
        raise _damaged(path, "the ElementType in its header is none of an image")
    voxels = path
    if (file := fields["ElementDataFile"]).upper() != "LOCAL":
        if file.startswith("LIST") or "%" in file:
            return  # there is a file per slice
        voxels, start = path.parent / file, 0
        if not voxels.exists():
            raise _damaged(path, "the file of voxels that its header names is not there")
    if "HeaderSize" in fields:
        return  # the voxels begin at another place in the file
    needed, there = math.prod(shape) * channels * size, voxels.stat().st_size - start
    if fields.get("CompressedData", "").lower().startswith(("t", "1")):
        needed = int(fields["CompressedDataSize"]) if fields.get("CompressedDataSize", "").isdecimal() else 0
    elif not fields.get("BinaryData", "").lower().startswith(("t", "1")):
        return  # the voxels are written as text
    if there < needed:
        raise _damaged(path, f"{there} of the {needed} bytes of its voxels are there")


def _read_header(content: bytes) -> tuple[dict[str, str], int]:
    """Return the fields, and the byte at which the voxels start."""
    fields: dict[str, str] = {}
    start = 0
    while start < len(content) and "ElementDataFile" not in fields:
        end = content.find(b"\n", start) + 1 or len(content)
        # split once, since a value may hold either sign: C:/a.raw
        key, *value = re.split("[=:]", content[start:end].decode(errors="replace"), maxsplit=1)
        start = end
        fields[key.strip()] = "".join(value).strip()
    return fields, start


def _damaged(path: Path, reason: str) -> ScanError:
    return ScanError(path, f"cannot be read ({reason})", EXPORT_AGAIN)
