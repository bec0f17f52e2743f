"""`dvn doctor`: the host's checks and the cloud's, put together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from burst.providers.base import ProviderError
from dvn.diagnose import examine
from dvn.diagnose.checkup import Facts, check_host
from dvn.diagnose.findings import Finding, fail
from dvn.diagnose.obstacles import check_rules
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import overlaid
from dvn.engine import Engine
from dvn.kernel.driver import KernelError
from dvn.kernel.state import table_name
from dvn.problems import SpecError
from dvn.spec import Site
from gateway import sitefile
from gateway.diagnose_ec2 import Account, check_account, check_gateway
from gateway.sections import Ec2
from gateway.sitefile import SiteFile

_DMI = Path("/sys/class/dmi/id")


def host_findings(site: Site) -> Iterator[Finding]:
    """Raises KernelError if this host cannot be looked at."""
    facts = examine.examine(site)
    yield from check_host(site, facts)
    if facts.may_change:
        yield from _rules(site, facts)


def _rules(site: Site, facts: Facts) -> Iterator[Finding]:
    """Everybody's rules, with ours as they are, or as they would be."""
    try:
        state = Engine(lenient=True).compiled(site)
    except SpecError as error:
        for problem in error.problems:
            yield fail("this host", problem.what, problem.fix)
        return
    except KernelError as error:
        yield fail("this host", str(error), "see the message")
        return
    others = tuple(t for t in facts.ruleset.tables if t.name != table_name(site.site))
    if facts.applied:
        yield from check_rules(site, facts.ruleset.with_words(state.tables), facts.scene)
    else:
        ours = Ruleset.of(state.tables).tables
        yield from check_rules(site, Ruleset((*others, *ours)), overlaid(facts.scene, state))


def cloud_findings(path: Path) -> Iterator[Finding]:
    """Of every EC2 account in the file; a failure to ask is a finding, too."""
    file = sitefile.load(path)
    if file.burst is None or file.site.underlay is None:
        return
    for name, config in sorted(file.burst.providers.items()):
        if not isinstance(config, Ec2):
            continue
        try:
            yield from _account(file, name, config)
        except ProviderError as error:
            yield fail(f"{name}: account", str(error), "see docs/how-to/prepare-ec2.md")


def _account(file: SiteFile, name: str, config: Ec2) -> Iterator[Finding]:
    from burst.providers.ec2 import mapped
    from gateway.parts import ec2_provider

    assert file.burst is not None
    assert file.site.underlay is not None
    underlay = file.site.underlay
    with mapped():
        client = ec2_provider(file, name).client()
        account = Account(
            name,
            client,
            file.site.site,
            config.subnet,
            tuple(config.security_groups),
            str(underlay.outside(4) or underlay.outside(6)),
            file.gateway.enrol.port,
        )
        yield from check_account(account)
        instance = _own_instance()
        if instance:
            yield from check_gateway(client, instance, routed=_routed(file.site))


def _routed(site: Site) -> list[str]:
    """Networks whose packets may leave with their own addresses."""
    return [
        f"{tenant}/{name}"
        for tenant, name, network in site.networks()
        if network.access == "open" and network.nat is None
    ]


def _own_instance() -> str:
    """The id of the EC2 instance this host is, "" if it is none: Nitro writes it into the board's
    asset tag (AWS: "Identify EC2 instances")."""
    try:
        vendor = (_DMI / "sys_vendor").read_text().strip()
        tag = (_DMI / "board_asset_tag").read_text().strip()
    except OSError:
        return ""
    return tag if vendor == "Amazon EC2" and tag.startswith("i-") else ""
