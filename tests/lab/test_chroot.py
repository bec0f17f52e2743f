"""A lab in a chroot stays in it: its hosts have the chroot's files, never the machine's.

setns(2) takes who enters a mount namespace to that namespace's root, which a chroot is not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable

# Everything of the machine at another place, with one directory that the machine does not have.
_TREE = r"""
set -e
mount --make-rprivate / && mount -t tmpfs tree "$1"
for each in /*; do
  if [ -L "$each" ]; then cp -P "$each" "$1$each"
  elif [ -d "$each" ]; then mkdir "$1$each"; mount --rbind "$each" "$1$each"
  fi
done
mkdir "$1/only-in-the-chroot"
case $2 in mounted) root=$1 ;; *) mkdir "$1/inner"; root=$1/inner
  for each in "$1"/*; do case $each in "$1/inner") continue ;; esac
    at=$root/${each##*/}
    if [ -L "$each" ]; then cp -P "$each" "$at"; else mkdir "$at"; mount --rbind "$each" "$at"; fi
  done ;;
esac
cd "$3" && exec chroot "$root" "$4" -c "import os; os.chdir('$3'); $5"
"""
_HOST = """
from pathlib import Path
from lab.hosts import Lab
with Lab() as lab:
    host = lab.host("h1")
    seen = host.inside(lambda: Path("/only-in-the-chroot").is_dir())
    ran = host.run("test", "-d", "/only-in-the-chroot", check=False).returncode == 0
    host.inside(lambda: Path("/run/of-the-host").touch())
    print(seen, ran, Path("/run/of-the-host").exists())
"""


@pytest.mark.kernel
@pytest.mark.parametrize("root", ["mounted", "plain"])
def test_a_host_of_a_lab_in_a_chroot_has_its_files(tmp_path: Path, root: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _TREE, "sh", tmp_path, root, CHECKOUT, PYTHON, _HOST],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout == "True True False\n", done.stdout + done.stderr
    assert not Path("/run/of-the-host").exists(), "it was written to the machine's own"
