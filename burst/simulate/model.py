"""What a simulated provider is like: machine types, prices, how long they take, how they fail.

Read from a YAML file; every time is in seconds and says so in its name.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ModelError(Exception):
    """The file describes no providers; the message names the place and what to write."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MachineType(_Model):
    """One type of machine."""

    cores: int = Field(gt=0)
    memory_mb: int = Field(default=0, ge=0)
    """0: 2 GiB a core."""
    price: Decimal = Field(ge=0)
    """For an hour, in the site's currency."""
    capacity: int | None = Field(default=None, ge=0)
    """How many can be had at once; all that are asked for unless given."""
    spot: bool = False
    """It may be taken back."""
    interruptions_per_hour: float = Field(default=0.0, ge=0)
    """How often that happens to one machine."""

    @property
    def memory(self) -> int:
        return self.memory_mb or 2048 * self.cores


class ProviderModel(_Model):
    """One provider. The numbers are those of a quiet EC2 region unless given."""

    boot_s: tuple[float, float] = (90.0, 180.0)
    """From the accepted launch to a usable node: between these, evenly."""
    billing_s: int = Field(default=1, ge=1)
    """What is charged for is rounded up to multiples of this: 1, or 3600 where hours are sold."""
    minimum_s: int = Field(default=60, ge=0)
    """The least that is charged for."""
    never_boots: float = Field(default=0.0, ge=0, le=1)
    """The share of launches that never become a node."""
    crashes_per_hour: float = Field(default=0.0, ge=0)
    """How often one machine ends by itself."""
    machines: dict[str, MachineType]

    @model_validator(mode="after")
    def _sensible(self) -> ProviderModel:
        if not self.machines:
            raise ValueError("machines: name at least one type")
        if not 0 <= self.boot_s[0] <= self.boot_s[1]:
            raise ValueError("boot_s: write [least, most], in seconds")
        return self

    def charged_s(self, seconds: float) -> float:
        """The seconds that are charged for a machine that was held for `seconds`."""
        least = max(seconds, self.minimum_s)
        return -(-least // self.billing_s) * self.billing_s


class _File(_Model):
    providers: dict[str, ProviderModel]


ON_DEMAND = ProviderModel(
    machines={
        "c4": MachineType(cores=4, price=Decimal("0.20")),
        "c16": MachineType(cores=16, price=Decimal("0.80")),
    }
)
"""A per-second cloud of machines with 4 and with 16 cores, at 0.05 a core-hour."""


def read_providers(path: Path) -> dict[str, ProviderModel]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _File.model_validate({"providers": found}).providers
    except OSError as error:
        raise ModelError(f"{path}: it cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ModelError(f"{path}: it is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise ModelError(f"{path}: {place or 'the file'}: {first['msg']}") from None
