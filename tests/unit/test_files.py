"""Folders appear whole or not at all: under an error, on a full disk, and after a kill."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_ensembles.disk.atomic import added_to, check_writable, file_written_aside, recover, written_aside
from lora_ensembles.errors import CheckpointError
from tiny_ensembles import files_below, largest_file


def write(folder: Path, *, size: int = 10) -> None:
    (folder / "first.txt").write_text("a" * size)
    (folder / "inner").mkdir()
    (folder / "inner" / "second.txt").write_text("b" * size)


def test_folder_has_its_name_only_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"

    with written_aside(path) as aside:
        write(aside)
        assert not path.exists()

    assert files_below(path) == {"first.txt", "inner", "inner/second.txt"}
    assert files_below(tmp_path) == {
        "new",
        "new/folder",
        *(f"new/folder/{name}" for name in files_below(path)),
    }


def test_folder_is_as_readable_as_one_made_by_hand(tmp_path: Path) -> None:
    with written_aside(tmp_path / "folder") as aside:
        write(aside)

    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_existing_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"exists already; choose another folder, or remove it first"),
        written_aside(tmp_path),
    ):
        pytest.fail("entered")  # pragma: no cover


def test_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    path = tmp_path / "file" / "folder"
    with (
        pytest.raises(
            CheckpointError, match=r"file/folder cannot be written: .*(Not a directory|File exists)"
        ),
        written_aside(path),
    ):
        pytest.fail("entered")  # pragma: no cover


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_any_error_while_writing_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "folder"
    with written_aside(path) as aside:
        write(aside, size=3)
    before = files_below(tmp_path)

    def replace() -> None:
        with written_aside(path, replace=True) as aside:
            write(aside, size=4)
            raise error

    with pytest.raises(type(error)):
        replace()

    assert files_below(tmp_path) == before
    assert (path / "first.txt").read_text() == "aaa"


def test_replaced_folder_holds_the_new_files_only(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with written_aside(path) as aside:
        write(aside)
    with written_aside(path, replace=True) as aside:
        (aside / "third.txt").write_text("c")

    assert files_below(tmp_path) == {"folder", "folder/third.txt"}


def test_file_that_the_system_refuses_to_let_grow_is_reported_and_the_old_folder_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "folder"
    with written_aside(path) as aside:
        write(aside, size=3)
    before = files_below(tmp_path)

    with (
        pytest.raises(
            CheckpointError,
            match=r"no space left to write .*folder.*what was there before is unchanged; free some space",
        ),
        largest_file(1000),
        written_aside(path, replace=True) as aside,
    ):
        write(aside, size=2000)

    assert files_below(tmp_path) == before
    assert (path / "first.txt").read_text() == "aaa"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = (
            os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_reported_and_the_old_folder_stays(small_disk: Path) -> None:
    path = small_disk / "folder"
    with written_aside(path) as aside:
        write(aside, size=20_000)
    before = files_below(small_disk)

    with (
        pytest.raises(CheckpointError, match=r"no space left to write .*No space left on device"),
        written_aside(path, replace=True) as aside,
    ):
        write(aside, size=30_000)

    assert files_below(small_disk) == before
    assert (path / "first.txt").read_text() == "a" * 20_000


def test_old_folder_of_a_run_killed_between_the_two_renames_is_found_again(tmp_path: Path) -> None:
    """Killed right there, the new folder and the old one are both complete, and neither has the name."""
    path = tmp_path / "folder"
    (tmp_path / ".folder.abc").mkdir()
    write(tmp_path / ".folder.abc", size=5)
    (tmp_path / ".folder.old.xyz" / "folder").mkdir(parents=True)
    write(tmp_path / ".folder.old.xyz" / "folder", size=3)

    recover(path)

    assert (path / "first.txt").read_text() == "aaa"
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder"}


def test_unfinished_folder_of_a_killed_run_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with written_aside(path) as aside:
        write(aside, size=3)
    (tmp_path / ".folder.abc").mkdir()
    write(tmp_path / ".folder.abc", size=1)

    recover(path)

    assert {entry.name for entry in tmp_path.iterdir()} == {"folder"}
    assert (path / "first.txt").read_text() == "aaa"


def test_entries_added_to_a_folder_appear_together_and_the_named_one_last(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with added_to(tmp_path, last="first.txt") as aside:
        write(aside)
        assert not (tmp_path / "first.txt").exists()

    assert files_below(tmp_path) == {"kept.txt", "first.txt", "inner", "inner/second.txt"}


def test_error_while_adding_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")

    with (
        pytest.raises(CheckpointError, match="no space left to write"),
        largest_file(1000),
        added_to(tmp_path, last="first.txt") as aside,
    ):
        write(aside, size=2000)

    assert files_below(tmp_path) == {"kept.txt"}


def test_entries_left_by_a_run_killed_while_adding_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "stale.txt").write_text("stale")
    (tmp_path / ".unfinished").mkdir()
    with added_to(tmp_path, last="first.txt") as aside:
        write(aside)

    assert files_below(tmp_path) == {"first.txt", "inner", "inner/second.txt"}


# Files


def write_file(path: Path, text: str = "new", *, replace: bool = True) -> None:
    with file_written_aside(path, replace=replace) as file:
        file.write(text)


def write_folder(path: Path) -> None:
    with written_aside(path, replace=True) as aside:
        write(aside)


def test_file_replaces_the_target_of_a_link_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real/a.txt")

    write_file(tmp_path / "link.txt")

    assert os.readlink(tmp_path / "link.txt") == "real/a.txt"
    assert (tmp_path / "real" / "a.txt").read_text() == "new"
    assert files_below(tmp_path) == {"real", "real/a.txt", "link.txt"}


def test_link_to_nothing_yet_gets_its_target(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("later.txt")

    write_file(tmp_path / "link.txt", replace=False)

    assert (tmp_path / "later.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()


def test_folder_replaces_the_target_of_a_link_and_the_link_stays(tmp_path: Path) -> None:
    with written_aside(tmp_path / "real") as aside:
        write(aside, size=3)
    (tmp_path / "link").symlink_to("real")

    with written_aside(tmp_path / "link", replace=True) as aside:
        (aside / "new.txt").write_text("new")

    assert (tmp_path / "link").is_symlink()
    assert files_below(tmp_path / "real") == {"new.txt"}


def test_replaced_file_keeps_its_permissions_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o640)
    usual = tmp_path / "by hand.txt"
    usual.write_text("")

    write_file(tmp_path / "a.txt")
    write_file(tmp_path / "b.txt")

    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b.txt").stat().st_mode == usual.stat().st_mode


def test_pipe_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        write_file(tmp_path / "pipe", "through", replace=False)
        assert reader.stdout is not None
        assert reader.stdout.read() == "through"
    assert (tmp_path / "pipe").is_fifo()


@pytest.fixture
def null_device(tmp_path: Path) -> Path:
    """A device like /dev/null of the test's own; only root can make one."""
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("cannot make a device here")
    return tmp_path / "null"


@pytest.mark.parametrize("replace", [False, True])
def test_device_is_written_and_stays_a_device(null_device: Path, replace: bool) -> None:
    write_file(null_device, replace=replace)

    assert null_device.is_char_device()
    assert null_device.stat().st_rdev == os.makedev(1, 3)
    assert [path.name for path in null_device.parent.iterdir()] == ["null"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_is_reported() -> None:
    with pytest.raises(CheckpointError, match="no space left to write /dev/full"):
        write_file(Path("/dev/full"))


@pytest.mark.parametrize("replace", [False, True])
def test_file_in_a_folders_place_is_refused(tmp_path: Path, replace: bool) -> None:
    with pytest.raises(CheckpointError, match="is a folder; give the name of a file"):
        write_file(tmp_path, replace=replace)


@pytest.mark.parametrize("length", [240, 255])
def test_longest_names_of_the_system_can_be_written(tmp_path: Path, length: int) -> None:
    write_file(tmp_path / ("n" * length))
    with written_aside(tmp_path / ("m" * length)) as aside:
        write(aside)

    assert {len(path.name) for path in tmp_path.iterdir()} == {length}


NAMES_THAT_CANNOT_BE = {
    "n" * 256: "File name too long",
    "new/" + "n" * 256 + "/a": "File name too long",
    "a\0b": "null (byte|character)",
    "circle": "Too many levels of symbolic links",
    "file/a": "Not a directory",
}


@pytest.mark.parametrize("name", NAMES_THAT_CANNOT_BE)
@pytest.mark.parametrize("what", ["check", "file", "folder"])
def test_name_that_cannot_be_is_the_librarys_error_and_makes_no_folder(
    tmp_path: Path, name: str, what: str
) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    before = files_below(tmp_path)

    ways = {"check": check_writable, "file": write_file, "folder": write_folder}
    with pytest.raises(
        CheckpointError, match=f"cannot be written: .*({NAMES_THAT_CANNOT_BE[name]}|File exists)"
    ):
        ways[what](tmp_path / name)
    assert files_below(tmp_path) - {"new"} == before


def test_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "a.txt")
    (tmp_path / "a.txt").write_text("old")
    check_writable(tmp_path / "a.txt")

    assert files_below(tmp_path) == {"a.txt"}
    assert (tmp_path / "a.txt").read_text() == "old"


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def test_read_only_disk_is_reported_by_the_check_and_by_every_write(small_disk: Path) -> None:
    message = r"cannot be written: Read-only file system; choose another place"
    (small_disk / "old.txt").write_text("old")
    with read_only(small_disk):
        for name in ("a.txt", "old.txt", "new/a.txt"):
            with pytest.raises(CheckpointError, match=message):
                check_writable(small_disk / name)
            with pytest.raises(CheckpointError, match=message):
                write_file(small_disk / name)
        with pytest.raises(CheckpointError, match=message), written_aside(small_disk / "folder"):
            pytest.fail("entered")  # pragma: no cover
    assert files_below(small_disk) == {"old.txt"}
