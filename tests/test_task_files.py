"""Data files: hostile and damaged archives, digests, the cache of what was read, and downloads."""

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from specreg.tasks import files
from specreg.tasks.archives import Limits, members
from specreg.tasks.files import DataFormatError, DownloadError, Flat, cache_directory, cached, digest, digests, download

CONTENT = {"a/one.txt": b"one\n" * 500, "a/b/two.txt": b"", "three.bin": bytes(range(256)) * 9}
SMALL = Limits(members=20, member_bytes=5_000, total_bytes=40_000)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep digests and caches out of the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in content.items():
            archive.writestr(name, body)
    return path


def write_tar(path: Path, content: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, body in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": write_zip,
    "tar": write_tar,
    "tar.gz": lambda path, content: write_tar(path, content, "w:gz"),
    "tar.xz": lambda path, content: write_tar(path, content, "w:xz"),
}


def content_of(path: Path, limits: Limits = SMALL) -> dict[str, bytes]:
    return {member.name: member.read() for member in members(path, limits)}


def special(kind: bytes, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo("special")
    info.type = kind
    for name, value in fields.items():
        setattr(info, name, value)
    return info


class TestArchives:
    """Archives are read in place, or refused in our words."""

    @pytest.mark.parametrize("kind", WRITERS)
    def test_every_member_in_order(self, tmp_path: Path, kind: str) -> None:
        path = WRITERS[kind](tmp_path / "archive", CONTENT)  # told by its bytes, not by its name
        found = list(members(path, SMALL))
        assert [(member.name, member.size) for member in found] == [(n, len(body)) for n, body in CONTENT.items()]
        assert content_of(path) == CONTENT
        blocks = {member.name: list(member.blocks(1000)) for member in members(path, SMALL)}
        assert [len(block) for block in blocks["a/one.txt"]] == [1000, 1000]
        assert [path] == list(tmp_path.iterdir())

    def test_names_in_one_spelling(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "archive", {"./a//b/./c": b"1"})
        assert content_of(path) == {"a/b/c": b"1"}

    def test_folders_are_left_out(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder" / "inner"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"1")
        with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            tar.add(tmp_path / "folder", "folder")
            archive.write(folder, "folder/inner")
            archive.write(folder / "file", "folder/inner/file")
        for name in ("a.tar", "a.zip"):
            assert content_of(tmp_path / name) == {"folder/inner/file": b"1"}

    @pytest.mark.parametrize("kind", WRITERS)
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"ok": b"", "../evil": b"1"}, "'../evil' leads out of it by '..'"),
            ({"a/b/../../../evil": b"1"}, "leads out of it by '..'"),
            ({"a\\..\\evil": b"1"}, "leads out of it by '..'"),
            ({"/etc/passwd": b"1"}, "'/etc/passwd' is an absolute path"),
            ({"C:\\evil": b"1"}, "is an absolute path"),
            ({"a/b": b"1", "a//b": b"2"}, "'a//b' stands in it twice"),
            ({"bomb": bytes(5_001)}, "'bomb' has 5,001 bytes; up to 5,000 are read"),
            ({str(number): bytes(4_500) for number in range(9)}, "unpacked it has more than 40,000 bytes"),
            ({str(number): b"" for number in range(21)}, "it has more than 20 members"),
        ],
    )
    def test_hostile_members(self, tmp_path: Path, kind: str, content: dict[str, bytes], message: str) -> None:
        path = WRITERS[kind](tmp_path / "archive", content)
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            content_of(path)
        assert str(path) in str(error.value)
        assert "official archive" in str(error.value)
        assert [path] == list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("info", "message"),
        [
            (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
            (special(tarfile.LNKTYPE, linkname="three.bin"), "is a link"),
            (special(tarfile.CHRTYPE), "is a device"),
            (special(tarfile.BLKTYPE), "is a device"),
            (special(tarfile.FIFOTYPE), "a pipe"),
            (special(b"?"), "is a device"),  # an unknown kind
        ],
    )
    def test_special_members_of_a_tar(self, tmp_path: Path, info: tarfile.TarInfo, message: str) -> None:
        path = tmp_path / "archive"
        with tarfile.open(path, "w") as archive:
            archive.addfile(info)
        with pytest.raises(DataFormatError, match=message):
            content_of(path)

    def test_links_and_devices_of_a_zip(self, tmp_path: Path) -> None:
        for kind, message in ((stat.S_IFLNK, "is a link"), (stat.S_IFCHR, "is a device")):
            info = zipfile.ZipInfo("special")
            info.external_attr = (kind | 0o777) << 16
            with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
                archive.writestr(info, "/etc/passwd")
            with pytest.raises(DataFormatError, match=message):
                content_of(tmp_path / "archive")

    def test_encrypted_zip(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "archive", {"secret": b"1" * 50})
        body = bytearray(path.read_bytes())
        body[6] |= 1
        body[body.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(body)
        with pytest.raises(DataFormatError, match="encrypted"):
            content_of(path)

    @pytest.mark.parametrize("size", ["-512", "-1", "99999999999999", "1" * 400])
    def test_sizes_that_lie_in_extended_headers(self, tmp_path: Path, size: str) -> None:
        """A size that would lead tarfile backwards, and so round for ever, or far beyond the end."""
        path = tmp_path / "archive"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("file")
            info.pax_headers = {"size": size}
            archive.addfile(info)
            archive.addfile(tarfile.TarInfo("next"))
        with pytest.raises(DataFormatError):
            content_of(path)

    def test_a_header_that_asks_for_all_memory(self, tmp_path: Path) -> None:
        info = special(tarfile.XHDTYPE, size=1 << 34)
        (tmp_path / "archive").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)))
        with pytest.raises(DataFormatError, match=re.escape("a header of 17,179,869,184 bytes")):
            content_of(tmp_path / "archive")

    def test_headers_without_end(self, tmp_path: Path) -> None:
        header = special(tarfile.GNUTYPE_LONGNAME, size=1).tobuf() + b"x".ljust(512, b"\0")
        (tmp_path / "archive").write_bytes(gzip.compress(header * 5000))
        with pytest.raises(DataFormatError):
            content_of(tmp_path / "archive", Limits())

    def test_a_stream_that_unpacks_without_end(self, tmp_path: Path) -> None:
        """Zeros behind the archive's end are read for the checksum, but not for ever."""
        packed = gzip.compress(bytes(10_240) + bytes(100_000))
        (tmp_path / "archive").write_bytes(packed)
        with pytest.raises(DataFormatError, match="more than 40,000 bytes"):
            content_of(tmp_path / "archive")

    @pytest.mark.parametrize("kind", WRITERS)
    def test_truncated_anywhere(self, tmp_path: Path, kind: str) -> None:
        path = WRITERS[kind](tmp_path / "archive", CONTENT)
        whole = path.read_bytes()
        end = whole.rstrip(b"\0") if kind == "tar" else whole  # a tar ends in zeros, of which two blocks are enough
        for size in range(0, len(end), max(1, len(end) // 60)):
            path.write_bytes(whole[:size])
            with pytest.raises(DataFormatError, match="truncated or damaged"):
                content_of(path)

    @pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
    def test_flipped_bytes_never_pass(self, tmp_path: Path, kind: str) -> None:
        """Whatever byte is changed, the archive is refused in our words, or read as it was."""
        small = {"a": b"some text, " * 20, "b/c": b"more"}
        path = WRITERS[kind](tmp_path / "archive", small)
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            try:
                found = content_of(path)
            except DataFormatError:
                continue
            assert list(found.values()) == list(small.values()), place

    def test_damaged_header_in_the_middle(self, tmp_path: Path) -> None:
        """Where tarfile takes a damaged header for the end, and would leave out what follows."""
        path = write_tar(tmp_path / "archive", {"a": b"1", "b": b"2", "c": b"3"})
        body = bytearray(path.read_bytes())
        body[1024] ^= 0xFF
        path.write_bytes(body)
        with pytest.raises(DataFormatError, match="bad checksum"):
            content_of(path)

    @pytest.mark.parametrize("body", [b"", b"<html>404</html>", b"PK\x03\x04", b"\x1f\x8b", b"\xfd7zXZ\x00", bytes(9)])
    def test_no_archive(self, tmp_path: Path, body: bytes) -> None:
        (tmp_path / "archive").write_bytes(body)
        with pytest.raises(DataFormatError, match=re.escape("no zip, tar, tar.gz or tar.xz archive")):
            content_of(tmp_path / "archive")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            content_of(tmp_path / "archive")

    def test_xz_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "archive").write_bytes(lzma.compress(b"hello" * 1000))
        with pytest.raises(DataFormatError):
            content_of(tmp_path / "archive")


class TestDigests:
    """SHA-256 of data files."""

    def test_file_and_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        for name in ("b", "a"):
            (folder / name).write_bytes(name.encode())
        listing = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a", "b"))
        found = digests([folder / "a", folder], tmp_path)
        assert found == {
            "folder/a": hashlib.sha256(b"a").hexdigest(),
            "folder": hashlib.sha256(listing.encode()).hexdigest(),
        }

    def test_computed_once_for_size_and_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"1")
        first = digest(path)
        monkeypatch.setattr(files, "_known", {})  # as in another process
        monkeypatch.setattr(files, "_file_digest", lambda path: "computed")
        assert digest(path) == first
        os.utime(path, ns=(1, 1))
        assert digest(path) == "computed"
        path.write_bytes(b"22")
        assert digest(path) == "computed"

    @pytest.mark.parametrize("note", [b"", b"[]", b"{}", b"null", b'{"path": 1, "stamp": 2, "sha256": 3}', b"\xff"])
    def test_damaged_notes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"1")
        first = digest(path)
        (kept,) = cache_directory().iterdir()
        kept.write_bytes(note)
        monkeypatch.setattr(files, "_known", {})
        assert digest(path) == first
        assert json.loads(kept.read_bytes())["sha256"] == first

    def test_without_a_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_bytes(b"1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
        assert digest(tmp_path / "file") == hashlib.sha256(b"1").hexdigest()


def flat(**changes: object) -> Flat:
    arrays = {
        "data": np.arange(10, dtype=np.uint8),
        "offsets": np.array([0, 3, 10]),
        "labels": np.array([[1, 2], [3, 4]], np.int32),
        "notes": {"characters": ["é", "\n"]},
    }
    return Flat(**(arrays | changes))  # type: ignore[arg-type]


class Builder:
    """Counts how often it reads."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Flat:
        self.calls += 1
        return flat()


def same(a: Flat, b: Flat) -> bool:
    names = ("data", "offsets", "labels")
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
    return arrays and all(getattr(a, name).dtype == getattr(b, name).dtype for name in names) and a.notes == b.notes


class TestCache:
    """Flat files."""

    def test_read_once(self) -> None:
        build = Builder()
        for _ in range(3):
            assert same(cached("x", build, source="s", version=1, settings={"n": (1, 2)}), flat())
        assert build.calls == 1
        assert [path.suffix for path in cache_directory().iterdir()] == [".flat"]

    def test_source_version_and_settings_count(self) -> None:
        build = Builder()
        for source, version, number in (("s", 1, 1), ("t", 1, 1), ("s", 2, 1), ("s", 1, 2)):
            cached("x", build, source=source, version=version, settings={"n": number})
        assert build.calls == 4

    def test_arrays_are_read_only(self) -> None:
        cached("x", flat, source="s", version=1, settings={})
        found = cached("x", flat, source="s", version=1, settings={})
        with pytest.raises(ValueError, match="read-only"):
            found.data[0] = 1

    def test_every_flipped_or_missing_byte_is_found(self) -> None:
        build = Builder()
        cached("x", build, source="s", version=1, settings={})
        (path,) = cache_directory().iterdir()
        whole = path.read_bytes()
        padding = whole.index(b"\0", len(files._MAGIC) + 12), len(whole) - len(whole) // 64 * 64
        header_end = padding[0]
        body = -(-header_end // 64) * 64
        damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(header_end)]
        damaged += [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(body, len(whole))]
        damaged += [whole[:size] for size in range(0, len(whole), 7)] + [whole + b"\0"]
        for count, content in enumerate(damaged, start=2):
            path.write_bytes(content)
            assert same(cached("x", build, source="s", version=1, settings={}), flat())
            assert build.calls == count
            assert path.read_bytes() == whole  # replaced, and nothing left beside it
        assert [path] == list(cache_directory().iterdir())

    def test_another_files_content_is_refused(self) -> None:
        """A file under the wrong name is not taken."""
        cached("x", flat, source="s", version=1, settings={})
        (path,) = cache_directory().iterdir()
        content = path.read_bytes()
        path.unlink()
        cached("x", flat, source="t", version=1, settings={})
        (other,) = cache_directory().iterdir()
        other.write_bytes(content)
        build = Builder()
        cached("x", build, source="t", version=1, settings={})
        assert build.calls == 1

    def test_empty_arrays(self) -> None:
        empty = flat(data=np.empty(0, np.uint8), labels=np.empty(0, np.int64))
        for _ in range(2):
            assert same(cached("x", lambda: empty, source="s", version=1, settings={}), empty)
        assert same(cached("x", Builder(), source="s", version=1, settings={}), empty)

    def test_failures_leave_nothing(self) -> None:
        def fail() -> Flat:
            raise DataFormatError("no")

        with pytest.raises(DataFormatError, match="no"):
            cached("x", fail, source="s", version=1, settings={})
        with pytest.raises(TypeError, match="not float64"):
            cached("x", lambda: flat(data=np.zeros(3)), source="s", version=1, settings={})
        assert not cache_directory().exists() or not list(cache_directory().iterdir())

    def test_without_a_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        build = Builder()
        for _ in range(2):
            assert same(cached("x", build, source="s", version=1, settings={}), flat())
        assert build.calls == 2


BODY = bytes(range(256)) * 40
BODY_DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves BODY whole, cut short, without a length, or from elsewhere."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:5000] if self.path == "/short" else BODY)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on the loopback device."""
    monkeypatch.setenv("no_proxy", "*")
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


class TestDownload:
    """Downloads, which only an explicit call begins."""

    @pytest.mark.parametrize("sha256", [None, BODY_DIGEST, BODY_DIGEST.upper()])
    @pytest.mark.parametrize("name", ["good", "endless"])
    def test_arrives(self, server: str, tmp_path: Path, sha256: str | None, name: str) -> None:
        to = tmp_path / "new" / "file"
        assert download(f"{server}/{name}", to, sha256=sha256) == BODY_DIGEST
        assert to.read_bytes() == BODY
        assert [to] == list(to.parent.iterdir())

    def test_what_is_there_is_not_fetched_again(self, server: str, tmp_path: Path) -> None:
        to = tmp_path / "file"
        for _ in range(2):
            download(f"{server}/good", to, sha256=BODY_DIGEST)
        assert Handler.asked == ["/good"]
        to.write_bytes(b"damaged")
        download(f"{server}/good", to, sha256=BODY_DIGEST)
        assert to.read_bytes() == BODY

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("good", {"sha256": "0" * 64}, f"is not the file asked for: SHA-256 {BODY_DIGEST} instead of 000"),
            ("good", {"largest": 10_000}, "more than the 10,000 bytes allowed"),
            ("endless", {"largest": 10_000}, "more than the 10,000 bytes allowed"),
            ("short", {}, "broke off after 5,000 of 10,240 bytes"),
            ("missing", {}, "could not be downloaded"),
            ("moved", {}, "could not be downloaded"),
        ],
    )
    def test_nothing_is_left_behind(
        self, server: str, tmp_path: Path, name: str, settings: dict[str, object], message: str
    ) -> None:
        to = tmp_path / "file"
        to.write_bytes(b"old")
        with pytest.raises(DownloadError, match=re.escape(message)) as error:
            download(f"{server}/{name}", to, **settings)  # type: ignore[arg-type]
        assert f"{server}/{name}" in str(error.value)
        assert [to] == list(tmp_path.iterdir())
        assert to.read_bytes() == b"old"

    def test_no_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(DownloadError, match="could not be downloaded"):
            download("http://127.0.0.1:9", tmp_path / "file")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "/etc/passwd", ""])
    def test_other_addresses(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(ValueError, match="begins with https:// or http://"):
            download(url, tmp_path / "file")
