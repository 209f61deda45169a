"""Atomic writing of files, and file names."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from sb3_ezm.checkpoint import read_checkpoint, write_checkpoint
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.files import check_can_write, file_stems, free_path, replacing, write_text


def test_a_new_file_gets_default_permissions_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "one\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE((tmp_path / "new" / "a.txt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    (tmp_path / "new" / "a.txt").chmod(0o640)
    write_text(tmp_path / "new" / "a.txt", "two\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "two\n"
    assert stat.S_IMODE((tmp_path / "new" / "a.txt").stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_after_an_error_only_the_old_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".bin" and temporary.parent == tmp_path
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(IsADirectoryError, match="is a folder"), replacing(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_writing_to_a_link_replaces_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "real" / "a.txt")
    write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "real" / "a.txt").read_text(encoding="utf-8") == "new"


def test_a_link_with_the_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)  # as if the name had been guessed
    with replacing(tmp_path / "a.txt") as temporary:
        guessed = temporary
    guessed.symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert victim.read_text(encoding="utf-8") == "precious"


def test_writers_in_two_threads_do_not_interfere(tmp_path: Path) -> None:
    path, written = tmp_path / "x.ezm", []

    def write(tag: int) -> None:
        for _ in range(20):
            written.append(write_checkpoint(path, [tag] * 1000))

    threads = [threading.Thread(target=write, args=(tag,)) for tag in range(2)]
    write(0)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = read_checkpoint(path)  # never damaged, never a mixture
        assert len(set(found)) == 1
    assert len(written) == 60 and os.listdir(tmp_path) == ["x.ezm"]


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".txt")
    write_text(path, "x")
    assert path.read_text(encoding="utf-8") == "x"


def test_stems_differ_and_need_no_quotes() -> None:
    assert file_stems(["walk", "h1-run", "Toy_2.0"]) == ["walk", "h1-run", "Toy_2.0"]
    # A name that is already a valid stem is kept; some file systems ignore case.
    assert file_stems(["walk (slow)", "walk [slow]", "walk-slow-"]) == ["walk-slow--2", "walk-slow--3", "walk-slow-"]
    assert file_stems(["a", "A", "a/b"]) == ["a", "A-2", "a-b"]
    assert len(file_stems(["n" * 300])[0]) == 100
    assert file_stems(["漢" * 85, "漢" * 86]) == ["漢" * 33, "漢" * 33 + "-2"], "file systems count bytes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    write_text(pipe, "all of it")
    reader.join(60)
    assert not reader.is_alive(), "nobody has written to the pipe"
    assert received == ["all of it"] and pipe.is_fifo()


def test_a_free_path_is_unused(tmp_path: Path) -> None:
    path = tmp_path / "walk.mp4"
    assert free_path(path) == path
    path.write_text("")
    (tmp_path / "walk-2.mp4").symlink_to(tmp_path / "nowhere")
    assert free_path(path) == tmp_path / "walk-3.mp4"


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")  # as on VirtualBox's shared folders
        actual(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "content")
    assert (tmp_path / "a.txt").read_text() == "content"


def test_looking_whether_a_file_can_be_written_leaves_a_link_as_it_is(tmp_path: Path) -> None:
    link, target = tmp_path / "policy.pt", tmp_path / "data" / "policy.pt"
    link.symlink_to(target)
    check_can_write(link)
    assert link.is_symlink() and target.parent.is_dir() and not target.exists()
    write_text(link, "new")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "new"
    check_can_write(link)
    assert target.read_text(encoding="utf-8") == "new" and os.listdir(target.parent) == ["policy.pt"]


def test_looking_whether_a_file_can_be_written_leaves_what_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stat_of = tmp_path / "a.csv", Path.stat

    def written_meanwhile(self: Path, **keywords: Any) -> os.stat_result:
        if self.name == path.name and not stat_of(self).st_size:
            write_text(tmp_path / "b", "theirs")
            os.replace(tmp_path / "b", path)
        return stat_of(self, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", written_meanwhile)
        check_can_write(path)
    assert path.read_text(encoding="utf-8") == "theirs"

    def removed_meanwhile(self: Path, **keywords: Any) -> os.stat_result:
        if self.name == "new.csv":
            os.unlink(self)
        return stat_of(self, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", removed_meanwhile)
        check_can_write(tmp_path / "new.csv")
    assert os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_in_a_folder_that_cannot_be_written_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old", encoding="utf-8")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ConfigurationError, match="cannot be written"):
            check_can_write(tmp_path / "a.json")
    finally:
        tmp_path.chmod(0o755)
