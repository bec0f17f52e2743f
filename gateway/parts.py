"""Which LRMS, providers and agent a site file names, made when they are needed.

The daemon takes a `Parts`, so that a test can give it others; heavy libraries are imported by the
thread that uses them first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from burst.lrms.base import Lrms
from burst.model import Lease
from burst.money.prices import PriceFileError, Pricing, read_price_file
from burst.providers.base import Misconfigured, Provider
from burst.providers.ec2 import LAUNCH_AT_ONCE
from gateway.enrol import EnrolServer
from gateway.hosts.keeper import HostKeeper, make_hosts
from gateway.hypervisors import Libvirt
from gateway.loops.lending import LazyBatches, LazyProvider, Switch
from gateway.loops.network import Agent
from gateway.sections import BurstConfig, Ec2
from gateway.sitefile import SiteFile
from gateway.steady import since_boot
from gateway.store import Store
from gateway.tls import TlsIdentity
from gateway.tokens import SiteSecret, token_hash

if TYPE_CHECKING:
    from burst.providers.ec2 import Ec2Provider
    from burst.providers.libvirt import LibvirtProvider


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Parts:
    """What the daemon is put together from."""

    agent: Callable[[SiteFile], Agent]
    lrms: Callable[[BurstConfig], Lrms]
    provider: Callable[[SiteFile, str], Provider]
    joining: Callable[[SiteFile, Store, Callable[[], datetime]], Joining]
    hosts: Callable[[SiteFile, Callable[[], datetime]], HostKeeper | None] = make_hosts
    clock: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = since_boot


@dataclass(frozen=True)
class Joining:
    """How borrowed machines join: what they are given at launch, and where they come for more."""

    user_data: Callable[[Lease], str]
    server: EnrolServer | None


def real_parts() -> Parts:
    return Parts(agent=_agent, lrms=_lrms, provider=_provider, joining=_joining)


def _agent(file: SiteFile) -> Agent:
    from dvn.agent_client import AgentClient

    return AgentClient(file.gateway.agent_socket)


def _lrms(config: BurstConfig) -> Lrms:
    from gateway.batch_parts import make_lrms

    return make_lrms(config)


def _provider(file: SiteFile, name: str) -> Provider:
    if file.burst is None:
        raise KeyError(name)
    config = file.burst.providers[name]
    pricing = partial(pricing_of, file, name)
    if isinstance(config, Libvirt):
        switch = Switch()
        made = LazyProvider(name, lambda: libvirt_provider(file, name, config, switch), pricing)
        made.switch = switch if config.mixed else None
        return made
    return LazyBatches(name, lambda: ec2_provider(file, name), LAUNCH_AT_ONCE, pricing)


def pricing_of(file: SiteFile, name: str) -> Pricing:
    """How the site prices a provider's machines. Raises `Misconfigured` for a wrong price file."""
    assert file.burst is not None
    quota = any(name in providers for providers in file.burst.quotas.values())
    path = file.burst.price_files.get(name)
    if path is None:
        return Pricing(quota)
    try:
        return Pricing(quota, read_price_file(Path(path).read_text(encoding="utf-8"), path))
    except OSError as error:
        raise Misconfigured(f"price file {path}: {error.strerror}") from error
    except (PriceFileError, UnicodeDecodeError) as error:
        raise Misconfigured(str(error)) from error


def libvirt_provider(
    file: SiteFile, name: str, config: Libvirt, on: Callable[[], bool]
) -> Provider:
    """The hypervisor; with `mixed` its cores are shared with the batch system, if `on` says so."""
    inner = _hypervisor(file, name, config)
    if config.mixed is None:
        return inner
    from burst.lrms.slurm import run
    from burst.mixed.provider import MixedProvider
    from burst.mixed.slurm import SlurmShare
    from burst.mixed.weights import Balance

    balance = Balance(config.mixed.weights(), config.uri, run)
    return MixedProvider(inner, SlurmShare(config.mixed.node), on, balance)


def _hypervisor(file: SiteFile, name: str, config: Libvirt) -> LibvirtProvider:
    from burst.providers.libvirt import LibvirtProvider
    from burst.providers.libvirt_domain import LibvirtConfig

    return LibvirtProvider(
        name,
        LibvirtConfig(
            uri=config.uri,
            site=file.site.site,
            images={key: image.image() for key, image in config.images.items()},
            types={key: kind.flavour() for key, kind in config.types.items()},
            storage=config.storage,
            cores=config.cores,
            memory_mb=config.memory,
            reserve_cores=config.reserve_cores,
            reserve_memory_mb=config.reserve_memory,
            virtualization=config.virtualization,
            mtu=config.mtu,
        ),
        clock=utc_now,
    )


def ec2_provider(file: SiteFile, name: str) -> Ec2Provider:
    from burst.providers.ec2 import Ec2Config, Ec2Provider

    assert file.burst is not None
    config = file.burst.providers[name]
    assert isinstance(config, Ec2)
    if config.credentials is not None and not Path(config.credentials).is_file():
        raise Misconfigured(f"provider {name}: there is no credentials file {config.credentials}")
    pools = (pool for pool in file.burst.pools.values() if pool.provider == name)
    return Ec2Provider(
        name,
        Ec2Config(
            region=config.region,
            image=config.image,
            subnet=config.subnet,
            security_groups=config.security_groups,
            types=tuple(sorted({kind for pool in pools for kind in pool.types})),
            site=file.site.site,
            credentials=config.credentials,
            profile=config.profile,
            endpoint=config.endpoint,
            prices=config.prices,
            rate=_rate(file.burst, config.currency),
            on_demand=config.spot != "only",
            spot=config.spot != "no",
            public_address=config.public_address,
            key_name=config.key_name,
            read_timeout=file.gateway.answer_timeout,
        ),
    )


def _rate(burst: BurstConfig, currency: str) -> Decimal:
    return Decimal(1) if currency == burst.currency else burst.exchange[currency]


def machine_mtu(file: SiteFile, lease: Lease) -> int:
    """What a machine in the lease's network may send, as far as the site file tells."""
    from dvn.kernel.state import Host
    from dvn.tunnels.mtu import network_mtu

    own = (lease.tenant, lease.network)
    tunnels = [each for each in file.site.tunnels() if (each.tenant, each.network) == own]
    return network_mtu(file.site, Host(), tunnels)


def _joining(file: SiteFile, store: Store, clock: Callable[[], datetime]) -> Joining:
    from burst.join.bundle import Bundle, BundleError
    from burst.join.userdata import TUNNEL_MTU, JoinGateway, user_data
    from gateway.batch_parts import make_recipe

    burst, gateway, underlay = file.burst, file.gateway, file.site.underlay
    assert burst is not None
    assert underlay is not None, "the site file's checks see to it"
    recipe = make_recipe(burst, TUNNEL_MTU)
    public = str(underlay.outside(4))
    inside = any(isinstance(config, Libvirt) for config in burst.providers.values())
    bind = str(gateway.enrol.address or ("0.0.0.0" if inside else underlay.of(4)))
    directory = gateway.state_directory
    secret = SiteSecret.load_or_create(directory)
    identity = TlsIdentity.load_or_create(directory, public, utc_now())

    def bundle(lease_id: str) -> Bundle:
        lease = store.lease(lease_id)
        if lease is None or lease.pool not in burst.pools:
            raise BundleError(f"lease {lease_id} has no pool in the site file any more")
        pool = burst.pools[lease.pool]
        return recipe.bundle(lease, features=(pool.partition, *pool.features))

    def make_user_data(lease: Lease) -> str:
        token = secret.batch_token(lease.batch) if lease.batch else secret.token(lease.id)
        if not lease.batch:  # a machine of a batch gets its lease's token when it claims it
            expires = clock() + gateway.enrol.token_lifetime
            store.joins.mint(lease.id, token_hash(token), expires)
        network = file.site.network(lease.tenant, lease.network)
        inner = ip_address(lease.address)
        length = next(prefix.prefixlen for prefix in network.prefix if inner in prefix)
        # A hypervisor's machine is in the network itself, and meets the gateway there.
        attached = isinstance(burst.providers.get(lease.provider), Libvirt)
        here = [str(gate.ip) for gate in network.gateways() if inner in gate.network]
        address = here[0] if attached else public
        host = f"[{address}]" if ":" in address else address
        told = JoinGateway(
            address=address,
            attached=attached,
            mtu=machine_mtu(file, lease) if attached else TUNNEL_MTU,
            enrol_url=f"https://{host}:{gateway.enrol.port}",
            pin=identity.pin,
            prefix_length=length,
            heartbeat=gateway.enrol.heartbeat,
            watchdog=gateway.enrol.watchdog,
        )
        return user_data(lease, told, token)

    server = EnrolServer(
        address=bind,
        port=gateway.enrol.port,
        identity=identity,
        secret=secret,
        store=store.joins,
        bundle=bundle,
        clock=clock,
        wall=utc_now,
        token_lifetime=gateway.enrol.token_lifetime,
    )
    return Joining(make_user_data, server)
