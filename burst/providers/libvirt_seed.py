"""The NoCloud seed: a small CD-ROM image from which cloud-init learns what this machine is.

Source: cloud-init's documentation, "NoCloud" (a volume labelled `cidata` with `meta-data`,
`user-data` and `network-config`) and "Networking config Version 2". pycdlib is imported when it is
first needed.
"""

from __future__ import annotations

import io
import json
from typing import Any

LABEL = "cidata"
_FILES = (  # name in ISO 9660 (ECMA-119: eight characters, a dot, three), and the real one
    ("METADATA.;1", "meta-data"),
    ("USERDATA.;1", "user-data"),
    ("NETWORK.;1", "network-config"),
)


def seed_files(lease_id: str, name: str, user_data: str, mac: str) -> dict[str, str]:
    """The three files. JSON is YAML. The interface is brought up, and gets no address from
    cloud-init: the join script gives it the lease's, and no time is lost on waiting for DHCP."""
    network = {
        "version": 2,
        "ethernets": {
            "dvn0": {
                "match": {"macaddress": mac},
                "dhcp4": False,
                "dhcp6": False,
                "optional": True,
            }
        },
    }
    return {
        # cloud-init runs what is once for an instance again when the id changes: it is the lease's.
        "meta-data": json.dumps({"instance-id": lease_id, "local-hostname": name}) + "\n",
        "user-data": user_data,
        "network-config": json.dumps(network) + "\n",
    }


def seed_image(files: dict[str, str]) -> bytes:
    """The image's bytes: the same files, the same length (a repeated launch writes it again)."""
    import pycdlib

    iso: Any = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", joliet=3, vol_ident=LABEL)
    for short, name in _FILES:
        content = files[name].encode()
        iso.add_fp(
            io.BytesIO(content), len(content), f"/{short}", rr_name=name, joliet_path=f"/{name}"
        )
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()
