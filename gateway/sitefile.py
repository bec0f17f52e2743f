"""The whole site file: dvn's part, the gateway's and the burst engine's, and what binds them.

Every problem of the file is found in one reading, each with file, line and how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path

from burst.model import Policy, Pool
from burst.money.prices import CORE_HOURS
from burst.observe import duration_text
from dvn import located, spec
from dvn.forms import nearest, validate
from dvn.located import Located, Path_, Problem, SpecError
from dvn.spec import Site
from dvn.values import Address
from gateway.batch import LsfConfig
from gateway.hypervisors import Libvirt
from gateway.sections import BurstConfig, Enrol, GatewayConfig, PoolConfig, policy_of

FOREIGN = ("gateway", "burst")


@dataclass(frozen=True)
class SiteFile:
    """One file, checked as a whole. `burst` is None on a site that only has networks."""

    path: Path
    site: Site
    gateway: GatewayConfig
    burst: BurstConfig | None

    @property
    def pools(self) -> tuple[Pool, ...]:
        if self.burst is None:
            return ()
        quotas = {provider for of in self.burst.quotas.values() for provider in of}
        return tuple(
            replace(config.pool(name), unit=CORE_HOURS if config.provider in quotas else "")
            for name, config in sorted(self.burst.pools.items())
        )

    @property
    def policy(self) -> Policy:
        return Policy() if self.burst is None else policy_of(self.burst)


def load(path: Path) -> SiteFile:
    """Read and check the file. Raises `SpecError` with every problem."""
    return parse(located.load(path), path)


def parse(doc: Located, path: Path) -> SiteFile:
    problems: list[Problem] = []
    site: Site | None = None
    gateway: GatewayConfig | None = None
    burst: BurstConfig | None = None
    try:
        site = spec.parse_site(doc, also=FOREIGN)
    except SpecError as error:
        problems += error.problems
    try:
        part = doc.get("gateway")
        gateway = GatewayConfig() if part is None else validate(GatewayConfig, part)
    except SpecError as error:
        problems += error.problems
    try:
        part = doc.get("burst")
        burst = None if part is None else validate(BurstConfig, part)
    except SpecError as error:
        problems += error.problems
    if site is not None and burst is not None:
        enrol = (gateway or GatewayConfig()).enrol
        problems += [problem.placed(doc) for problem in _conflicts(site, burst, enrol)]
    if problems or site is None or gateway is None:
        raise SpecError(problems)
    return SiteFile(path, _reserved(site, burst), gateway, burst)


def _reserved(site: Site, burst: BurstConfig | None) -> Site:
    """DHCP gives no address that is a tunnel's or may become a borrowed machine's."""
    taken: dict[tuple[str, str], list[Address]] = {}
    for tunnel in site.tunnels():
        taken.setdefault((tunnel.tenant, tunnel.network), []).extend(tunnel.addresses)
    for pool in burst.pools.values() if burst else ():
        addresses = map(ip_address, pool.addresses)
        taken.setdefault((pool.tenant, pool.network), []).extend(addresses)
    return site.with_reserved(taken)


def _conflicts(site: Site, burst: BurstConfig, enrol: Enrol) -> Iterator[Problem]:
    """What is wrong between values that are right by themselves."""
    if site.underlay is None:
        yield _problem(
            "there are pools, but the site has no underlay for their tunnels",
            "add `underlay: {interface: ..., address: ...}`",
            "pools",
        )
    elif site.underlay.of(4) is None:
        yield _problem(
            "there are pools, but the underlay has no IPv4 address for their tunnels",
            "add one: `address: [IPV4, IPV6]`",
            "pools",
        )
    for name, pool in burst.pools.items():
        yield from _pool_conflicts(site, burst, name, pool)
    for name, provider in burst.providers.items():
        if isinstance(provider, Libvirt):
            yield from _hypervisor_conflicts(burst, name, provider)
            yield from _unreachable_enrolment(site, burst, name, enrol.port)
    yield from _shared(burst)
    yield from _money_conflicts(site, burst)
    policy = policy_of(burst)
    if policy.backoff_first > policy.backoff_limit:
        yield _problem(
            "backoff_first is longer than backoff_limit",
            "make it shorter",
            "policy",
            "backoff_first",
        )
    yield from _dead_man(policy, enrol)


def _dead_man(policy: Policy, enrol: Enrol) -> Iterator[Problem]:
    """A machine that is not heard is drained first and powers itself off later, never the other way
    round; and one heartbeat lost on the way is no silence."""
    silence, given = policy.silence_timeout, "watchdog" in enrol.model_fields_set
    if silence >= enrol.watchdog:
        what = (
            f"a machine would power itself off after {duration_text(enrol.watchdog)}, its jobs "
            f"with it, before it is drained for not being heard ({duration_text(silence)})"
        )
        fix = "make burst.policy.silence_timeout shorter than gateway.enrol.watchdog"
        policy_at = ("burst", "policy", "silence_timeout")
        place: Path_ = ("gateway", "enrol", "watchdog") if given else policy_at
        yield Problem("", 0, what, fix, place)
    if silence < 2 * enrol.heartbeat:
        what = (
            f"one heartbeat lost, and a machine is given up: they come every "
            f"{duration_text(enrol.heartbeat)}, and silence_timeout is {duration_text(silence)}"
        )
        fix = "make silence_timeout twice as long as gateway.enrol.heartbeat at least"
        yield _problem(what, fix, "policy", "silence_timeout")


def _hypervisor_conflicts(burst: BurstConfig, name: str, provider: Libvirt) -> Iterator[Problem]:
    """Types of images that are not there, and pools that ask for types that are not there."""
    for kind, flavour in provider.types.items():
        if flavour.image not in provider.images:
            what = f"there is no image `{flavour.image}`"
            fix = nearest(flavour.image, provider.images)
            yield _problem(what, fix, "providers", name, "types", kind, "image")
    for pool_name, pool in burst.pools.items():
        missing = [kind for kind in pool.types if kind not in provider.types]
        if pool.provider == name and missing:
            what = f"provider `{name}` has no type `{missing[0]}`"
            yield _problem(what, nearest(missing[0], provider.types), "pools", pool_name, "types")


def _money_conflicts(site: Site, burst: BurstConfig) -> Iterator[Problem]:
    for tenant in burst.budgets:
        if tenant not in site.tenants:
            yield _problem(
                f"a budget for tenant `{tenant}`, which is not declared",
                nearest(tenant, site.tenants),
                "budgets",
                tenant,
            )
    for tenant, quotas in burst.quotas.items():
        if tenant not in site.tenants:
            fix = nearest(tenant, site.tenants)
            what = f"a quota for tenant `{tenant}`, which is not declared"
            yield _problem(what, fix, "quotas", tenant)
        for provider, quota in quotas.items():
            if provider not in burst.providers:
                fix = nearest(provider, burst.providers)
                what = f"there is no provider `{provider}`"
                yield _problem(what, fix, "quotas", tenant, provider)
            yield from _soft_above(quota.soft, quota.core_hours, "quotas", tenant, provider)
    for tenant, budget in burst.budgets.items():
        yield from _soft_above(budget.soft, budget.limit, "budgets", tenant)
        for number, one in enumerate(budget.also):
            yield from _soft_above(one.soft, one.limit, "budgets", tenant, "also", number)
            earlier = {limit.period for limit in budget.limits()[: number + 1]}
            if one.period in earlier:
                what = f"tenant `{tenant}` has two budgets for each {one.period}"
                yield _problem(what, "keep one of them", "budgets", tenant, "also", number)
    for provider in burst.price_files:
        if provider not in burst.providers:
            fix = nearest(provider, burst.providers)
            yield _problem(f"there is no provider `{provider}`", fix, "price_files", provider)
    for name, config in burst.providers.items():
        currency = getattr(config, "currency", burst.currency)
        if currency != burst.currency and not burst.exchange.get(currency):
            yield _problem(
                f"provider `{name}` charges {currency}, and the site counts {burst.currency}",
                f"add `exchange: {{{currency}: ...}}`: what one {currency} costs",
                "providers",
                name,
            )


def _soft_above(soft: Decimal | None, hard: Decimal, *path: str | int) -> Iterator[Problem]:
    if soft is not None and soft > hard:
        what = f"the soft limit {soft} is above the hard one, {hard}"
        yield _problem(what, "make it smaller", *path, "soft")


def _unreachable_enrolment(
    site: Site, burst: BurstConfig, name: str, port: int
) -> Iterator[Problem]:
    """A hypervisor's machines meet the gateway inside their network, which is closed by default."""
    for pool_name, pool in burst.pools.items():
        tenant = site.tenants.get(pool.tenant)
        network = tenant.networks.get(pool.network) if tenant else None
        if pool.provider == name and network and f"tcp/{port}" not in network.services:
            yield _problem(
                f"machines of provider `{name}` cannot enrol from network `{pool.network}`",
                f"let them reach the gateway there: `services: [tcp/{port}]` in the network",
                "pools",
                pool_name,
                "network",
            )


def _pool_conflicts(
    site: Site, burst: BurstConfig, name: str, pool: PoolConfig
) -> Iterator[Problem]:
    at = ("pools", name)
    if pool.provider not in burst.providers:
        fix = nearest(pool.provider, burst.providers)
        yield _problem(f"there is no provider `{pool.provider}`", fix, *at, "provider")
    if pool.partition in pool.from_partitions:
        yield _problem(
            f"partition `{pool.partition}` is where jobs come from and where they go",
            "give borrowed nodes a partition of their own",
            *at,
            "partition",
        )
    if "max_machines" in pool.model_fields_set and pool.max_machines > len(pool.addresses):
        yield _problem(
            f"max_machines is {pool.max_machines}, but there are {len(pool.addresses)} addresses",
            "add addresses, or lend fewer machines",
            *at,
            "max_machines",
        )
    if isinstance(burst.lrms, LsfConfig) and len(pool.from_partitions) != 1:
        yield _problem(
            f"jobs of {len(pool.from_partitions)} queues: LSF does not tell where to return one",
            "name one queue, and make a pool for each of the others",
            *at,
            "from",
        )
    tenant = site.tenants.get(pool.tenant)
    if tenant is None:
        fix = nearest(pool.tenant, site.tenants)
        yield _problem(f"there is no tenant `{pool.tenant}`", fix, *at, "tenant")
        return
    if pool.network not in tenant.networks:
        fix = nearest(pool.network, tenant.networks)
        yield _problem(
            f"tenant `{pool.tenant}` has no network `{pool.network}`", fix, *at, "network"
        )
        return
    yield from _address_conflicts(site, name, pool)


def _address_conflicts(site: Site, name: str, pool: PoolConfig) -> Iterator[Problem]:
    """The first address of the pool that cannot be a machine's: one problem tells it all."""
    network = site.network(pool.tenant, pool.network)
    gateways = {interface.ip for interface in network.gateways()}
    ports = {address for port in network.ports for address in port.address}
    for text in pool.addresses:
        address = ip_address(text)
        prefix = next((p for p in network.prefix if address in p), None)
        if prefix is None:
            shown = ", ".join(map(str, network.prefix))
            what = f"address {text} is outside network `{pool.network}`"
            fix = f"use addresses of {shown}"
        elif address in gateways:
            what, fix = f"address {text} is the gateway's", "leave it out of the range"
        elif address in (prefix.network_address, prefix.broadcast_address):
            what = f"address {text} is the first or last of {prefix}, which no machine may have"
            fix = "leave it out of the range"
        elif address in ports:
            what, fix = f"address {text} is taken by a port", "leave it out of the range"
        else:
            continue
        yield _problem(what, fix, "pools", name, "addresses")
        return


def _shared(burst: BurstConfig) -> Iterator[Problem]:
    """What two pools must not share: a partition of two tenants, an address in one network."""
    owners: dict[str, str] = {}
    taken: dict[tuple[str, str, str], str] = {}
    for name, pool in burst.pools.items():
        owner = owners.setdefault(pool.partition, pool.tenant)
        if owner != pool.tenant:
            yield _problem(
                f"partition `{pool.partition}` is tenant `{owner}`'s already: "
                "two tenants would run jobs on each other's machines",
                f"give tenant `{pool.tenant}` a partition of its own",
                "pools",
                name,
                "partition",
            )
        first = next((a for a in pool.addresses if (pool.tenant, pool.network, a) in taken), None)
        if first is not None:
            other = taken[pool.tenant, pool.network, first]
            yield _problem(
                f"address {first} belongs to pool `{other}` already",
                "give each pool addresses of its own",
                "pools",
                name,
                "addresses",
            )
        for address in pool.addresses:
            taken.setdefault((pool.tenant, pool.network, address), name)


def _problem(what: str, fix: str, *path: str | int) -> Problem:
    place: Path_ = ("burst", *path)
    return Problem("", 0, what, fix, place)
