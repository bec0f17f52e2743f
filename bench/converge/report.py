"""The figures as a table, each beside what it is to be."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

# name, what it says, the most (or with `>` the least) it is to be
TARGETS: tuple[tuple[str, str, str, float], ...] = (
    ("cold_ratio_1000", "cold converge, middle size / ip -batch + nft -f", "<", 0.95),
    ("cold_ratio_4000", "cold converge, large size / ip -batch + nft -f", "<", 0.95),
    ("cold_settings_ratio_1000", "the same beside ip + nft + sysctl", "", 0.0),
    ("cold_settings_ratio_4000", "the same, large size", "", 0.0),
    ("cold_writing_ratio_1000", "of that the writes alone, not verified", "", 0.0),
    ("cold_writing_ratio_4000", "the same, large size", "", 0.0),
    ("growth_4000_1000", "cold converge, large / middle size", "<", 5.0),
    ("noop_ratio_1000", "no-op, middle size / ip -j + nft -j reads", "<", 1.0),
    ("noop_ratio_4000", "no-op, large size / ip -j + nft -j reads", "<", 1.0),
    ("change_ms_4000", "one network or NAT entry changed, large size, ms", "<", 20.0),
    ("change_cpu_ms_4000", "of that on a processor, the kernel's part too, ms", "", 0.0),
    ("change_ratio_4000_100", "the same, large / small size", "<", 1.5),
    ("restart_s_1000", "restart until in control, middle size, s", "<", 2.0),
    ("drift_s_1000", "from a foreign change to its repair, middle size, s", "<", 1.0),
    ("nat_path_ratio", "packet path, 10,000 NAT entries / 10", ">", 0.95),
    ("gretap_ratio", "gretap / plain path", ">", 0.9),
    ("wireguard_ratio", "wireguard / plain path", "", 0.0),
)


def show(figures: dict[str, Any]) -> None:
    console = Console()
    sizes = " / ".join(map(str, figures["sizes"]))
    console.print(
        f"kernel {figures['kernel']}, networks {sizes}, {figures['runs']} runs each, "
        f"{figures['seconds']} s in all"
    )
    if figures["stand_in"]:
        words = ", ".join(f"{by} for {name}" for name, by in figures["stand_in"].items())
        console.print(f"[bold]Stand-ins on this kernel: {words}[/bold]")
    table = Table("figure", "what", "measured", "wanted", "")
    for name, what, sign, bound in TARGETS:
        if name not in figures:
            continue
        value = figures[name]
        good = not sign or (value <= bound if sign == "<" else value >= bound)
        wanted = "" if not sign else f"{'at most' if sign == '<' else 'at least'} {bound:g}"
        verdict = "" if not sign else "[green]yes[/green]" if good else "[red]no[/red]"
        table.add_row(name, what, f"{value:.3g}", wanted, verdict)
    console.print(table)
    if "by_size" in figures:
        console.print(_seconds(figures["by_size"]))
    if "restart_runs" in figures:
        console.print(
            f"Restart: {figures['restart_writes']} writes, "
            f"{figures['restart_packets_lost']} packets lost of "
            f"{min(row['packets_sent'] for row in figures['restart_runs'])} a run"
        )
    peers = dict(figures.get("peers", {}))
    if peers:
        console.print(f"{peers.pop('networks')} bridges with a port and an address, seconds:")
        for name, value in peers.items():
            console.print(f"  {name}: {value if isinstance(value, str) else f'{value:.2f}'}")


def _seconds(by_size: dict[str, Any]) -> Table:
    table = Table(
        "networks", "cold, ours", "ip + nft", "no-op, ours", "reads", "add one", "NAT entry"
    )
    for size, row in by_size.items():
        ours, theirs = row["ours"], row["theirs"]
        table.add_row(
            size,
            f"{median(ours['cold']):.3f} s",
            f"{median(theirs['cold']):.3f} s",
            f"{median(ours['noop']):.3f} s",
            f"{median(theirs['reads']):.3f} s",
            f"{1000 * median(ours['add']):.1f} ms",
            f"{1000 * median(ours['nat']):.1f} ms",
        )
    return table
