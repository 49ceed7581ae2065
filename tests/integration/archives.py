"""Archives for the tests, by Python's zipfile and tarfile: reads those of the server, and writes good and hostile ones.

    archives.py show FILE            one line for each entry: kind, name, size or target, mode, time
    archives.py good FOLDER          archives that a server unpacks
    archives.py hostile FOLDER       archives that it must refuse
"""

import gzip
import io
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib


def show(path):
    lines = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            for one in archive.infolist():
                mode = one.external_attr >> 16
                kind = "folder" if one.is_dir() else "link" if stat.S_ISLNK(mode) else "file"
                what = archive.read(one).decode() if kind == "link" else one.file_size if kind == "file" else ""
                lines.append([kind, one.filename.rstrip("/"), what, oct(mode & 0o777), one.date_time[0]])
    else:
        with tarfile.open(path) as archive:
            for one in archive:
                kind = "folder" if one.isdir() else "link" if one.issym() else "file"
                what = one.linkname if kind == "link" else one.size if kind == "file" else ""
                if kind == "file":
                    assert len(archive.extractfile(one).read()) == one.size
                lines.append([kind, one.name, what, oct(one.mode), one.mtime])
    for line in lines:
        print(*[str(word).encode("utf-8", "backslashreplace").decode() for word in line])


def tar(path, entries, mode="w", form=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=form) as archive:
        for name, change in entries:
            info = tarfile.TarInfo(name)
            info.mtime = 1_500_000_000
            data = b""
            for key, value in change.items():
                if key == "data":
                    data = value
                    info.size = len(value)
                else:
                    setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data) if data else None)


def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0))
            info.compress_type = method
            info.external_attr = mode << 16
            archive.writestr(info, data)


LONG = "/".join(["long" * 20] * 6) + "/näme.txt"


def good(folder):
    entries = [
        ("./", {"type": tarfile.DIRTYPE, "mode": 0o755}),
        ("./d", {"type": tarfile.DIRTYPE, "mode": 0o755}),
        ("d/run.sh", {"data": b"echo hi", "mode": 0o755}),
        ("d/empty", {}),
        ("d/link", {"type": tarfile.SYMTYPE, "linkname": "../" + LONG}),
        (LONG, {"data": b"long"}),
        ("big", {"data": os.urandom(3 << 20)}),
    ]
    tar(f"{folder}/pax.tar", entries)
    tar(f"{folder}/gnu.tar", entries, form=tarfile.GNU_FORMAT)
    tar(f"{folder}/pax.tar.gz", entries, "w:gz")
    for name, method in [("deflated", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)]:
        zipped(f"{folder}/{name}.zip", [
            ("d/", b"", stat.S_IFDIR | 0o755),
            ("d/run.sh", b"echo hi", stat.S_IFREG | 0o755),
            ("d/empty", b"", stat.S_IFREG | 0o644),
            ("d/link", ("../" + LONG).encode(), stat.S_IFLNK | 0o777),
            (LONG, b"long", stat.S_IFREG | 0o644),
            ("big", os.urandom(3 << 20), stat.S_IFREG | 0o644),
        ], method)

    # Written to a pipe: sizes follow the data, and zip64 fields are there for small files.
    class Pipe(io.RawIOBase):
        def __init__(self, out):
            self.out = out

        def writable(self):
            return True

        def write(self, data):
            return self.out.write(data)

    with open(f"{folder}/streamed.zip", "wb") as out, zipfile.ZipFile(Pipe(out), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [("d/run.sh", b"echo hi"), ("d/empty", b""), (LONG, b"long"), ("big", os.urandom(3 << 20))]:
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)


def hostile(folder):
    file, link, hard = {"data": b"evil"}, {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
    tars = {
        "up": [("ok", file), ("../evil", file)],
        "up-inside": [("a/../../evil", file)],
        "absolute": [("/tmp/evil", file)],
        "link-out": [("link", {**link, "linkname": "../../etc"})],
        "link-absolute": [("link", {**link, "linkname": "/etc/passwd"})],
        "link-through": [("link", {**link, "linkname": "folder"}), ("link/evil", file)],
        "links-step-by-step": [("a/b", {**link, "linkname": ".."}), ("c", {**link, "linkname": "a/b/../.."})],
        "link-below-link": [("x/y/p", {**link, "linkname": "../.."}), ("x/y/p/q", {**link, "linkname": "../../.."})],
        "hard-link": [("ok", file), ("hard", {**hard, "linkname": "ok"})],
        "pipe": [("pipe", {"type": tarfile.FIFOTYPE})],
        "device": [("device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})],
        "twice": [("same", file), ("same", file)],
        "file-and-folder": [("same", file), ("same/below", file)],
        "over-file": [("keep/below", file)],
        "over-folder": [("folder", file)],
        "no-name": [("", file)],
        "long-component": [("n" * 300, file)],
        "huge-name": [("n" * 200_000, file)],
        "sparse": [("sparse", {**file, "pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}})],
    }
    for name, entries in tars.items():
        tar(f"{folder}/{name}.tar", entries, form=tarfile.GNU_FORMAT if name == "huge-name" else tarfile.PAX_FORMAT)
    with tarfile.open(f"{folder}/not-utf8.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(b"\xff\xfe".decode("utf-8", "surrogateescape")))
    with open(f"{folder}/cut.tar", "wb") as cut:
        tar(f"{folder}/whole.tmp", [("ok", file), ("big", {"data": bytes(100_000)})])
        cut.write(open(f"{folder}/whole.tmp", "rb").read()[:50_000])
    compressed = gzip.compress(open(f"{folder}/whole.tmp", "rb").read())
    open(f"{folder}/cut.tar.gz", "wb").write(compressed[:-20])
    open(f"{folder}/checksum.tar.gz", "wb").write(compressed[:-8] + bytes(8))
    os.remove(f"{folder}/whole.tmp")
    # A small file with 400 MB of zeros, for a workspace of 50 MB.
    with gzip.open(f"{folder}/bomb.tar.gz", "wb", 9) as bomb:
        info = tarfile.TarInfo("zeros")
        info.size = 400 << 20
        bomb.write(info.tobuf())
        for _ in range(400):
            bomb.write(bytes(1 << 20))
        bomb.write(bytes(1024))
    # Attributes without end, before no entry.
    with gzip.open(f"{folder}/attributes.tar.gz", "wb", 9) as bomb:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 100 << 20
        bomb.write(info.tobuf() + bytes(100 << 20))

    regular = stat.S_IFREG | 0o644
    zips = {
        "up": [("ok", b"ok", regular), ("../evil", b"evil", regular)],
        "absolute": [("/tmp/evil", b"evil", regular)],
        "link-out": [("link", b"../../etc", stat.S_IFLNK | 0o777)],
        "link-through": [("link", b"folder", stat.S_IFLNK | 0o777), ("link/evil", b"evil", regular)],
        "device": [("device", b"", stat.S_IFCHR | 0o644)],
        "over-folder": [("folder", b"file", regular)],
    }
    for name, entries in zips.items():
        zipped(f"{folder}/{name}.zip", entries)
    # zipfile warns of the second one.
    with open(os.devnull, "w") as sys.stderr:
        zipped(f"{folder}/twice.zip", [("same", b"1", regular), ("same", b"2", regular)])
    sys.stderr = sys.__stderr__
    zipped(f"{folder}/whole.tmp", [("ok", b"ok" * 1000, regular), ("name", b"x", regular)], zipfile.ZIP_STORED)
    whole = open(f"{folder}/whole.tmp", "rb").read()
    os.remove(f"{folder}/whole.tmp")

    def changed(name, old, new, which=-1):
        at = whole.rindex(old) if which == -1 else whole.index(old)
        open(f"{folder}/{name}.zip", "wb").write(whole[:at] + new + whole[at + len(old):])

    changed("checksum", b"okok", b"OKOK", 0)
    changed("two-names", b"name", b"evil", -1)
    open(f"{folder}/cut.zip", "wb").write(whole[:-30])
    open(f"{folder}/no-index.zip", "wb").write(whole[:1500])
    # Flag 1 of the first entry of the index, and of its header.
    at = whole.index(b"PK\x01\x02")
    encrypted = bytearray(whole)
    encrypted[at + 8] |= 1
    encrypted[6] |= 1
    open(f"{folder}/encrypted.zip", "wb").write(encrypted)
    # The same 900 MB six times: 5.4 GB in less than a megabyte, by entries that share their data.
    size = 900 << 20
    packer, checksum = zlib.compressobj(1, zlib.DEFLATED, -15), 0
    zeros, parts = bytes(1 << 20), []
    for _ in range(900):
        parts.append(packer.compress(zeros))
        checksum = zlib.crc32(zeros, checksum)
    data = b"".join(parts) + packer.flush()
    header = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 33, checksum, len(data), size, 1, 0) + b"x"
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, checksum, len(data), size, 1, 0, 0, 0, 0, 0, 0) + b"x"
    index = entry * 6
    start = len(header) + len(data)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 6, 6, len(index), start, 0)
    open(f"{folder}/overlapping.zip", "wb").write(header + data + index + end)
    # A million entries (zip64), all with the same empty header.
    header = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"x"
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    index, start, count = entry * 1_000_000, len(header), 1_000_000
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(index), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(index), 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    open(f"{folder}/million.zip", "wb").write(header + index + end64 + locator + end)
    open(f"{folder}/nothing.bin", "wb").write(b"this is no archive")
    open(f"{folder}/empty.bin", "wb").write(b"")


if __name__ == "__main__":
    {"show": show, "good": good, "hostile": hostile}[sys.argv[1]](sys.argv[2])
