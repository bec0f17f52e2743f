"""moto's resources -> the network, and an instance's metadata, as values."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from lab.cloud.metadata import Metadata
from lab.cloud.network import Group, Interface, NatGateway, Permission, Route, Subnet, Vpc


def read(backend: Any, living: Iterable[Any]) -> tuple[Vpc, ...]:
    """Every VPC of a moto EC2 backend, with the interfaces of the living instances."""
    instances = list(living)
    return tuple(_vpc(backend, vpc, instances) for vpc in backend.vpcs.values())


def _vpc(backend: Any, vpc: Any, instances: list[Any]) -> Vpc:
    cidrs = [a["cidr_block"] for a in vpc.get_cidr_block_association_set()]
    gateways = [g for g in backend.internet_gateways.values() if g.vpc and g.vpc.id == vpc.id]
    subnets = [s for zone in backend.subnets.values() for s in zone.values() if s.vpc_id == vpc.id]
    return Vpc(
        id=vpc.id,
        cidrs=tuple(cidrs or [vpc.cidr_block]),
        internet=bool(gateways),
        subnets=tuple(
            Subnet(s.id, s.cidr_block, _routes(_table(backend, vpc.id, s.id))) for s in subnets
        ),
        groups=tuple(
            Group(g.id, _permissions(g.ingress_rules), _permissions(g.egress_rules))
            for g in backend.groups[vpc.id].values()
        ),
        interfaces=tuple(
            _interface(instance, nic)
            for instance in instances
            if instance.vpc_id == vpc.id
            for nic in list(instance.nics.values())[:1]
        ),
        nat_gateways=tuple(
            NatGateway(n.id, n.subnet_id, _nat_address(n))
            for n in backend.nat_gateways.values()
            if n.vpc_id == vpc.id and n.state == "available"
        ),
    )


def _nat_address(gateway: Any) -> str | None:
    return next((a["publicIp"] for a in gateway.address_set if a.get("publicIp")), None)


def _interface(instance: Any, nic: Any) -> Interface:
    return Interface(
        id=nic.id,
        instance=instance.id,
        subnet=nic.subnet.id,
        mac=nic.mac_address,
        addresses=tuple(a["PrivateIpAddress"] for a in nic.private_ip_addresses),
        groups=tuple(sorted({g.id for g in nic.group_set})),
        public=nic.public_ip,
        checked=_true(instance.source_dest_check) and _true(nic.source_dest_check),
    )


def metadata(
    instance: Any, interrupted: datetime | None, rebalance: datetime | None = None
) -> Metadata:
    """What an instance may know of itself."""
    nic, options = instance.nics[0], instance.metadata_options
    data = None if instance.user_data is None else base64.b64decode(str(instance.user_data))
    return Metadata(
        instance=instance.id,
        type=instance.instance_type,
        image=instance.image_id,
        zone=instance.availability_zone,
        hostname=instance.private_dns_name,
        mac=nic.mac_address,
        private_address=nic.private_ip_address,
        public_address=nic.public_ip,
        groups=tuple(sorted(g.name for g in nic.group_set)),
        user_data=data,
        interrupted=interrupted,
        rebalance=rebalance,
        spot=instance.lifecycle == "spot",
        launch_index=int(instance.ami_launch_index),
        enabled=options.http_endpoint != "disabled",
        token_required=options.http_tokens == "required",
        hop_limit=int(options.http_put_response_hop_limit or 1),
    )


def _true(value: object) -> bool:
    return str(value).lower() == "true"


def _table(backend: Any, vpc_id: str, subnet_id: str) -> Any:
    """The route table of a subnet: its own, else the VPC's main one."""
    tables = [t for t in backend.route_tables.values() if t.vpc_id == vpc_id]
    own = [t for t in tables if subnet_id in t._associations.values()]
    main = [t for t in tables if t.main_association_id is not None]
    return (own or main or [None])[0]


def _routes(table: Any) -> tuple[Route, ...]:
    if table is None:
        return ()
    found = []
    for route in table.routes:
        cidr = route.destination_cidr_block
        if cidr is None or route.local:
            continue
        if route.nat_gateway is not None:
            found.append(Route(cidr, "nat", route.nat_gateway.id))
        elif route.instance is not None or route.interface is not None:
            nic = route.interface if route.interface is not None else route.instance.nics[0]
            found.append(Route(cidr, "interface", nic.id))
        elif (route.gateway_id or "").startswith("igw-"):
            found.append(Route(cidr, "internet"))
        else:
            found.append(Route(cidr, "blackhole"))
    return tuple(found)


def _permissions(rules: Iterable[Any]) -> tuple[Permission, ...]:
    found = []
    for rule in rules:
        cidr = rule.ip_range.get("CidrIp") if rule.ip_range else None
        group = rule.source_group.get("GroupId") if rule.source_group else None
        if cidr is None and group is None:
            continue  # IPv6 and prefix lists: the lab's VPC has neither
        protocol = str(rule.ip_protocol)
        found.append(Permission(protocol, rule.from_port, rule.to_port, cidr, group))
    return tuple(found)
