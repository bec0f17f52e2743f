"""What a borrowed machine needs to be an HTCondor execution node.

The image has the package condor; the site's pool learns of the machine when its startd advertises
itself, by a token that allows nothing else. Only jobs routed to its partition start there, and a
drain lets them end.
Sources: the HTCondor manual (configuration macros, IDTOKENS), condor_token_create(1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from burst.join.accounts import accounts, file_servers, host_lines, mounted
from burst.join.bundle import Bundle, BundleError, Command, Directory, File, Mount, Program, Reach
from burst.lrms.htcondor_parse import FEATURES, HEARTBEAT, NODE, POOL, TARGET, quoted
from burst.model import Lease
from burst.policy.which import usable_memory_mb

RETIREMENT = timedelta(days=7)
"""How long a draining machine waits for its jobs. HTCondor's default, 0, evicts them at once."""
_HEARTBEAT = timedelta(seconds=30)
_PORT = 9618
# With systemd the package has started HTCondor already, without our configuration.
_START = """\
if [ -d /run/systemd/system ]; then exec systemctl restart condor; fi
exec condor_master"""


@dataclass(frozen=True, slots=True)
class HtCondorJoin:
    """The site's pool, as its borrowed nodes must know it.

    token: makes an IDTOKEN for one machine (ADVERTISE_STARTD, ADVERTISE_MASTER and READ only);
    raises `BundleError`. domain: the pool's UID_DOMAIN and FILESYSTEM_DOMAIN.
    """

    central_manager: str  # an address in the tenant network, or a name
    domain: str
    token: Callable[[], str]
    job_users: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    install: str = ""
    config: str = ""  # more lines of configuration, after ours
    reach_timeout: timedelta = timedelta(minutes=10)

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle:
        """What the machine of `lease` gets; the first of `features` is its partition."""
        token = self.token().strip()
        if token.count(".") != 2:
            raise BundleError("condor_token_create gave no token: may the gateway sign tokens?")
        users, groups = accounts(self.job_users)
        text = machine_config(
            central_manager=self.central_manager,
            domain=self.domain,
            node=lease.node,
            partition=features[0],
            features=features[1:],
            cores=lease.cores,
            memory_mb="{memory_mb}",
            address=lease.address,
        )
        memory = usable_memory_mb(lease.memory_mb)
        text = text.replace("{memory_mb}", str(memory))
        return Bundle(
            node=lease.node,
            preflight=(Program("condor_master", "condor"), Program("condor_startd", "condor")),
            install=self.install,
            users=users,
            groups=groups,
            directories=(Directory("/etc/condor/tokens.d", 0o700),),
            files=(
                File("/etc/condor/tokens.d/dvn", f"{token}\n".encode(), 0o600),
                File("/etc/condor/config.d/90-dvn", f"{text}{self.config}\n".encode()),
                File(
                    "/etc/hosts", host_lines({**self.hosts, lease.node: lease.address}), merge=True
                ),
            ),
            reach=(
                Reach("condor_collector", self.central_manager, _PORT),
                *file_servers(self.mounts),
            ),
            reach_timeout=self.reach_timeout,
            mounts=mounted(self.mounts, lease.address),
            commands=(
                Command("hostname", ("hostname", lease.node)),
                Command("condor", ("sh", "-c", _START), timedelta(minutes=2)),
            ),
            memory_mb=memory,
        )


def machine_config(
    *,
    central_manager: str,
    domain: str,
    node: str,
    partition: str,
    features: Sequence[str] = (),
    cores: int,
    memory_mb: int | str,
    heartbeat: timedelta = _HEARTBEAT,
    address: str = "",
) -> str:
    """condor_config of a borrowed machine: one partitionable slot; memory in MiB. address: the only
    one that its daemons listen on and tell the pool."""
    seconds = int(heartbeat.total_seconds())
    told = {NODE: node, POOL: partition, FEATURES: ",".join(features)}
    lines = [
        f"CONDOR_HOST = {central_manager}",
        "DAEMON_LIST = MASTER, STARTD",
        f"UID_DOMAIN = {domain}",
        f"FILESYSTEM_DOMAIN = {domain}",
        "TRUST_UID_DOMAIN = True",
        "SOFT_UID_DOMAIN = True",
        # Else a machine with two interfaces may tell the pool the one that is its cloud's.
        *([f"NETWORK_INTERFACE = {address}"] if address else []),
        f"NUM_CPUS = {cores}",
        f"MEMORY = {memory_mb}",
        "SLOT_TYPE_1 = 100%",
        "SLOT_TYPE_1_PARTITIONABLE = True",
        "NUM_SLOTS_TYPE_1 = 1",
        *(f"{name} = {quoted(value)}" for name, value in told.items()),
        f"{HEARTBEAT} = {seconds}",
        f"STARTD_ATTRS = $(STARTD_ATTRS) {' '.join(told)} {HEARTBEAT}",
        f"UPDATE_INTERVAL = {seconds}",
        # Closed by default: a job starts here only if it was routed here.
        f"START = (TARGET.{TARGET} =!= undefined) && stringListMember(MY.{POOL}, TARGET.{TARGET})",
        "SUSPEND = False",
        "PREEMPT = False",
        "KILL = False",
        f"MAXJOBRETIREMENTTIME = {int(RETIREMENT.total_seconds())}",
    ]
    return "\n".join(lines) + "\n"
