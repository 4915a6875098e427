"""Folders appear whole or not at all: under an error, on a full disk, and after a kill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ensembles.errors import CheckpointError
from lora_ensembles.files import added_to, recover, written_aside
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
