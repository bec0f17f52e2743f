"""Real virtual machines in the lab: libvirtd and QEMU (TCG) on lab hosts, and what guests boot."""
