"""The lab EC2: the real API, instances that are lab hosts, EC2's network rules on packets."""

from lab.cloud.cloud import CloudSite, LabCloud
from lab.cloud.faults import Faults, Throttle
from lab.cloud.instance import InstanceHost

__all__ = ["CloudSite", "Faults", "InstanceHost", "LabCloud", "Throttle"]
