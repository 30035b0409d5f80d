"""Public data files, fetched only where that was asked for, from a server on the loopback device."""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from specreg.studies import members
from specreg.studies.cli import app
from specreg.tasks import cifar_files, wikitext
from specreg.tasks.cifar10 import CIFAR10
from specreg.tasks.files import ENVIRONMENT_VARIABLE, DataFormatError, Download
from specreg.tasks.wikitext import WikiText

TEXT = "\n".join(f" word{n % 7} and word{n % 3} " for n in range(400)).encode() + b"\n"
FOLDER = "wikitext-2"


class Handler(BaseHTTPRequestHandler):
    """Serves the archive whole, cut short, after a redirection, with too much behind it, or not at all."""

    content: bytes
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        if self.path == "/moved.zip":
            self.send_response(302)
            self.send_header("Location", "/good.zip")
            self.end_headers()
            return
        self.send_response(200)
        if self.path != "/endless.zip":
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if self.path == "/short.zip":
            self.wfile.write(self.content[: len(self.content) // 2])
            return
        self.wfile.write(self.content)
        if self.path == "/endless.zip":
            for _ in range(64):
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that has WikiText-2's archive, much abridged."""
    from zipfile import ZipFile

    archive = tmp_path / "served.zip"
    with ZipFile(archive, "w") as file:
        for name in ("train", "valid", "test"):
            file.writestr(f"{FOLDER}/wiki.{name}.tokens", TEXT)
    Handler.content, Handler.asked = archive.read_bytes(), []
    archive.unlink()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


Offer = Callable[..., None]


@pytest.fixture
def offered(server: str, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Have the task name an address of the server; its digest is the right one unless another is given."""

    def offer(name: str, sha256: str | None = "", largest: int = 1 << 20) -> None:
        right = hashlib.sha256(Handler.content).hexdigest()
        download = Download(f"{server}/{name}", "wikitext-2-v1.zip", right if sha256 == "" else sha256, largest)
        monkeypatch.setattr(WikiText, "downloads", lambda self: (download,))

    return offer


def show(data: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["tasks", "show", "wikitext:tiny", "--data", str(data), "--examples", "1", *options])


TRAIN = [*("train", "--model", "lru", "--task", "wikitext:tiny", "--steps", "2", "--set", "budget.batch_size=2")]
SMALL = [*("--set", "model.d_model=8", "--set", "model.depth=1", "--set", "task.length=16")]


class TestOption:
    """`--download` on the command line."""

    @pytest.mark.parametrize("name", ["good.zip", "moved.zip"])
    def test_fetches_what_is_missing_and_goes_on(self, offered: Offer, server: str, tmp_path: Path, name: str) -> None:
        offered(name)
        data = tmp_path / "new" / "data"
        result = show(data, "--download")
        assert result.exit_code == 0, result.stderr
        assert "example 0" in result.stdout
        assert f"downloading {server}/{name}" in result.stderr and "as published" in result.stderr
        assert [path.name for path in data.iterdir()] == ["wikitext-2-v1.zip"]
        assert (data / "wikitext-2-v1.zip").read_bytes() == Handler.content
        Handler.asked.clear()
        assert show(data, "--download").exit_code == 0
        assert not Handler.asked, "what is there is not fetched again"

    def test_trains_on_what_came(self, offered: Offer, tmp_path: Path) -> None:
        offered("good.zip")
        out = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
        result = CliRunner().invoke(app, [*TRAIN, *SMALL, *out, "--download"])
        assert result.exit_code == 0, result.stderr
        digest = hashlib.sha256(Handler.content).hexdigest()
        assert digest in (tmp_path / "run" / "environment.json").read_text()
        evaluated = CliRunner().invoke(app, ["eval", str(tmp_path / "run")])
        assert evaluated.exit_code == 0 and "at length 64: " in evaluated.stdout

    def test_nothing_is_fetched_without_it(self, offered: Offer, server: str, tmp_path: Path) -> None:
        """The message names the address and the option; a trial run fetches nothing either."""
        offered("good.zip")
        data = tmp_path / "data"
        out = ["--data", str(data), "--out", str(tmp_path / "run")]
        results = [show(data)]
        results += [CliRunner().invoke(app, [*TRAIN, *out, *more]) for more in ([], ["--dry-run", "--download"])]
        for result in results:
            assert result.exit_code == 2
            assert f"{server}/good.zip" in result.stderr and "--download" in result.stderr
        assert not Handler.asked
        assert not list(tmp_path.iterdir())

    def test_a_file_without_a_known_digest_is_said_to_be_unchecked(self, offered: Offer, tmp_path: Path) -> None:
        offered("good.zip", None)
        result = show(tmp_path / "data", "--download")
        assert result.exit_code == 0
        assert hashlib.sha256(Handler.content).hexdigest() in result.stderr
        assert "recorded, not checked" in result.stderr

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("good.zip", {"sha256": "0" * 64}, "is not the file asked for: SHA-256"),
            ("short.zip", {}, "broke off after"),
            ("short.zip", {"sha256": None}, "broke off after"),
            ("missing.zip", {}, "404"),
            ("good.zip", {"largest": 100}, "more than the 100 bytes allowed"),
            ("endless.zip", {"largest": 100_000}, "more than the 100,000 bytes allowed"),
        ],
    )
    def test_nothing_is_left_behind(
        self, offered: Offer, tmp_path: Path, name: str, settings: dict[str, str | int | None], message: str
    ) -> None:
        offered(name, **settings)
        data = tmp_path / "data"
        result = show(data, "--download")
        assert result.exit_code == 1
        assert message in result.stderr and len(result.stderr.strip().splitlines()) == 2
        assert not list(data.glob("*"))

    def test_what_came_may_not_be_enough(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        download = Download(f"{server}/good.zip", "another name.zip")
        monkeypatch.setattr(WikiText, "downloads", lambda self: (download,))
        result = show(tmp_path / "data", "--download")
        assert result.exit_code == 2 and "was not found" in result.stderr

    def test_a_task_without_public_files_says_so(self, tmp_path: Path) -> None:
        command = ["tasks", "show", "retrieval", "--data", str(tmp_path)]
        plain, asked = (CliRunner().invoke(app, [*command, *more]) for more in ([], ["--download"]))
        assert plain.exit_code == asked.exit_code == 2
        assert "--download" not in plain.stderr
        assert "nothing that --download could fetch" in asked.stderr

    def test_resuming_takes_no_such_option(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["train", "--resume", "--out", str(tmp_path), "--download"])
        assert result.exit_code == 2 and "nothing else" in result.stderr


def tasks_that_offer() -> list[tuple[str, Download]]:
    presets = [task for _, cls in sorted(members.tasks().items()) for task in cls.presets().values()]
    found = {each.file: (type(task).__name__, each) for task in presets for each in task.downloads()}
    return list(found.values())


class TestAddresses:
    """What the tasks name."""

    def test_which_do(self) -> None:
        for name in ("cifar10", "imdb", "mnist", "wikitext"):
            assert members.tasks()[name]().downloads(), name
        assert members.tasks()["cifar10-gray"]().downloads() == CIFAR10().downloads()
        assert WikiText(corpus="wikitext-103").downloads() != WikiText().downloads()
        assert not members.tasks()["mqar"]().downloads()

    @pytest.mark.parametrize(("name", "each"), tasks_that_offer(), ids=lambda value: str(value)[:40])
    def test_form(self, name: str, each: Download) -> None:
        assert each.url.startswith("https://")
        assert each.sha256 is None or (len(each.sha256) == 64 and set(each.sha256) <= set("0123456789abcdef"))
        assert each.url.endswith(Path(each.file).name)
        assert not Path(each.file).is_absolute() and ".." not in each.file

    def test_names_are_those_that_are_looked_for(self, tmp_path: Path) -> None:
        """A file of that name is found where it would be put."""
        for name in ("cifar10", "imdb", "mnist", "wikitext"):
            task = members.tasks()[name](data=tmp_path / name)
            with pytest.raises(FileNotFoundError):
                task.data_files()
            for each in task.downloads():
                path = tmp_path / name / each.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            assert {path.relative_to(tmp_path / name).as_posix() for path in task.data_files()} == {
                each.file for each in task.downloads()
            }


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the layout of CIFAR-10's binary version, unpacked."""
    directory = tmp_path_factory.mktemp("unpacked")
    folder = directory / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = np.repeat(generator.integers(0, 256, (10_000, 1), np.uint8), 3073, axis=1)
        records[:, 0] = np.arange(10_000) % 10
        records.tofile(folder / name)
    return directory


def packed(binary: Path, to: Path, names: list[str]) -> Path:
    to.mkdir()
    with tarfile.open(to / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for name in names:
            archive.add(binary / "cifar-10-batches-bin" / name, f"cifar-10-batches-bin/{name}")
    return to


class TestCIFARArchive:
    """The binary version read from its archive, as it is downloaded."""

    names = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")

    def test_is_read_as_the_unpacked_folder(
        self, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        directory = packed(binary, tmp_path / "data", ["test_batch.bin", *self.names[4::-1]])  # in any order
        (archived, unpacked) = (
            cifar_files.read_colour(each, lambda planes: planes[:, :, 0, 0]) for each in (directory, binary)
        )
        for name in ("train", "train_labels", "test", "test_labels"):
            np.testing.assert_array_equal(getattr(archived, name), getattr(unpacked, name))
        assert [path.name for path in directory.iterdir()] == ["cifar-10-binary.tar.gz"]

    def test_damage_is_told(self, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        lacking = packed(binary, tmp_path / "lacking", list(self.names[:5]))
        with pytest.raises(DataFormatError, match=r"it has no cifar-10-batches-bin/test_batch\.bin"):
            cifar_files.read_colour(lacking, np.asarray)
        truncated = tmp_path / "truncated"
        truncated.mkdir()
        content = (lacking / "cifar-10-binary.tar.gz").read_bytes()
        (truncated / "cifar-10-binary.tar.gz").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataFormatError, match=r"truncated|damaged"):
            cifar_files.read_colour(truncated, np.asarray)
        short = tmp_path / "short" / "cifar-10-batches-bin"
        short.mkdir(parents=True)
        for name in self.names:
            (short / name).write_bytes(bytes(3073))
        with pytest.raises(DataFormatError, match="has 3,073 bytes; it should have 30,730,000"):
            cifar_files.read_colour(packed(short.parent, tmp_path / "cut", list(self.names)), np.asarray)


def test_downloads_do_not_make_a_run_another(tmp_path: Path) -> None:
    """What a task offers is no setting of it."""
    assert replace(WikiText(), data=tmp_path) == WikiText(data=tmp_path)
    assert wikitext.WikiText().downloads() == wikitext.WikiText().downloads()
