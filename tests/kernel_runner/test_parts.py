"""The pieces of lab.kernel that need neither root nor a VM."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.kernel import KernelError, features, find_kernel, guest, image
from lab.kernel.__main__ import FAILED, main
from lab.kernel.session import window


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=20),
    st.integers(1, 50),
)
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], step: int) -> None:
    stream = b"".join(guest.frame(kind, payload) for kind, payload in frames)
    cutter = guest.Frames()
    got = []
    for start in range(0, len(stream), step):
        got += cutter.feed(stream[start : start + step])
    assert got == frames


def test_a_broken_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        guest.Frames().feed(b"\xff" * 20)


def test_cpio_is_what_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    archive = image.Cpio()
    archive.directory("bin")
    archive.file("bin/x", b"odd length.", 0o755)
    archive.file("empty", b"")
    data = archive.bytes()
    subprocess.run(
        ["cpio", "-i", "--quiet"],
        input=data,
        cwd=tmp_path,
        check=True,
        timeout=20,
        capture_output=True,
    )
    assert (tmp_path / "bin/x").read_bytes() == b"odd length."
    assert (tmp_path / "bin/x").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "empty").read_bytes() == b""


def _tree(root: Path, version: str, *, with_9p: bool = True) -> Path:
    """A kernel as Debian lays it out, with modules of one byte."""
    modules = root / "lib/modules" / version
    for path in ("fs/9p/9p.ko", "net/9p/9pnet.ko", "net/9p/9pnet_virtio.ko", "virtio/v.ko"):
        (modules / "kernel" / path).parent.mkdir(parents=True, exist_ok=True)
        (modules / "kernel" / path).write_bytes(path[0].encode())
    if not with_9p:
        shutil.rmtree(modules / "kernel/fs/9p")
    (modules / "modules.builtin").write_text(
        "kernel/a/virtio_pci.ko\nkernel/b/overlay.ko\nkernel/c/virtio_console.ko\n"
    )
    (modules / "modules.dep").write_text(
        "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko\n"
        "kernel/net/9p/9pnet.ko:\n"
        "kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/virtio/v.ko\n"
        "kernel/virtio/v.ko:\n"
    )
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").write_bytes(b"kernel")
    return root


def test_the_newest_usable_kernel_is_taken(tmp_path: Path) -> None:
    _tree(tmp_path, "6.1.0-9-amd64")
    _tree(tmp_path, "6.1.0-10-amd64")
    _tree(tmp_path, "6.2.0-1-cloud-amd64", with_9p=False)
    assert find_kernel((tmp_path,)).version == "6.1.0-10-amd64"


def test_no_kernel_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="apt-get install linux-image-amd64"):
        find_kernel((tmp_path,))


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    kernel = find_kernel((_tree(tmp_path, "6.1.0-9-amd64"),))
    order = list(image.boot_modules(kernel))
    assert order.index("9pnet.ko") < order.index("9p.ko")
    assert order.index("v.ko") < order.index("9pnet_virtio.ko")
    assert len(order) == len(set(order))
    assert "overlay.ko" not in order  # built in


def test_a_module_the_kernel_does_not_have(tmp_path: Path) -> None:
    kernel = find_kernel((_tree(tmp_path, "6.1.0-9-amd64"),))
    (kernel.modules / "modules.builtin").write_text("")
    with pytest.raises(KernelError, match="has no module virtio_pci"):
        image.boot_modules(kernel)


def test_the_initramfs_is_made_once(tmp_path: Path) -> None:
    if not Path("/bin/busybox").exists():
        pytest.skip("busybox-static is not installed")
    kernel = find_kernel((_tree(tmp_path, "6.1.0-9-amd64"),))
    first = image.initramfs(kernel, tmp_path / "cache")
    stamp = first.stat().st_mtime_ns
    assert image.initramfs(kernel, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == stamp
    content = gzip.decompress(first.read_bytes())
    assert content.startswith(b"070701")
    assert b"TRAILER!!!" in content
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]


def test_a_kernel_that_can_be_entered_uncompressed_is_unpacked_once(tmp_path: Path) -> None:
    kernel = find_kernel((_tree(tmp_path, "6.1.0-9-amd64"),))
    plain = b"\x7fELF" + bytes(100) + image.PVH_NOTES[1] + bytes(100)
    kernel.image.write_bytes(b"setup code" + lzma.compress(plain) + b"trailer")
    path = image.boot_image(kernel, tmp_path / "cache")
    assert path.read_bytes() == plain
    stamp = path.stat().st_mtime_ns
    assert image.boot_image(kernel, tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "content",
    [
        b"no compression known",
        b"x" + image.XZ_MAGIC + b"broken",
        b"x" + lzma.compress(b"\x7fELF without the note"),
    ],
)
def test_another_kernel_is_booted_as_it_is(tmp_path: Path, content: bytes) -> None:
    kernel = find_kernel((_tree(tmp_path, "6.1.0-9-amd64"),))
    kernel.image.write_bytes(content)
    assert image.boot_image(kernel, tmp_path / "cache") == kernel.image
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("set_", "want"),
    [
        ({"DVN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/dvn"),
    ],
)
def test_cache_directory(monkeypatch: pytest.MonkeyPatch, set_: dict[str, str], want: str) -> None:
    for name in ("DVN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    assert image.cache_dir() == Path(want)


def test_without_qemu_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--vm", "--", "true"]) == FAILED
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert "qemu-system-x86_64 is missing: apt-get install qemu-system-x86" in words


def test_here_is_refused_where_the_kernel_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lab.kernel.runner.missing_features", lambda: ("gretap", "vrf"))
    assert main(["--here", "--", "true"]) == FAILED
    assert "cannot do gretap, vrf" in capsys.readouterr().err


def test_everything_is_missing_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert set(features.missing_features()) == features.FEATURES


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(features, "SYSTEM_PATH", str(tmp_path))
    with pytest.raises(KernelError, match="apt-get install util-linux"):
        features.missing_features()


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "no command given" in capsys.readouterr().err


def test_window_of_no_terminal(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w") as handle:
        assert window(handle.fileno()) == [24, 80]


def test_the_guest_agent_needs_only_the_standard_library() -> None:
    """It runs before any environment exists: python3 -I -S must be able to load it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({guest.__file__!r})"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
