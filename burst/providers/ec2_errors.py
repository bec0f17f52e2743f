"""EC2's error codes in the few classes a decision tells apart.

Source: "Error codes for the Amazon EC2 API" (docs.aws.amazon.com/ec2/latest/devguide/
errors-overview.html). Throttling is not "no capacity": the first says nothing of machines, and
confusing them once disabled 2,000 nodes (aws-parallelcluster-node#734).
"""

from __future__ import annotations

from burst.providers.base import (
    Misconfigured,
    NoCapacity,
    ProviderError,
    QuotaExceeded,
    Throttled,
    Unreachable,
)

_THROTTLED = frozenset(
    {
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "EC2ThrottledException",
        "BandwidthLimitExceeded",
        "SlowDown",
        "ResourceCountLimitExceeded",  # too many machines in one request: fewer at a time
    }
)
_NO_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientAddressCapacity",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",  # this type is not offered in this zone
    }
)
_QUOTA = frozenset({"PendingVerification", "OptInRequired"})
_UNREACHABLE = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "ServerInternal",
        "ServiceUnavailable",
        "Unavailable",
        "RequestTimeout",
        "RequestTimeoutException",
    }
)
_HINTS = {
    "AuthFailure": "see the credentials file",
    "UnauthorizedOperation": "the credentials lack a permission",
    "InvalidClientTokenId": "see the credentials file",
    "SignatureDoesNotMatch": "see the credentials file",
    "RequestExpired": "the clock of this host is wrong",
    "InvalidAMIID.NotFound": "see `image` in the site file; images belong to one region",
    "InvalidAMIID.Malformed": "see `image` in the site file",
    "InvalidSubnetID.NotFound": "see `subnet` in the site file",
    "InvalidGroup.NotFound": "see `security_groups` in the site file",
    "PendingVerification": "AWS is still checking the account",
    "OptInRequired": "the account is not signed up for this",
}


def provider_error(code: str, message: str, status: int = 0) -> ProviderError:
    """The domain error for an EC2 error code; `status` is the HTTP status, 0 if not known."""
    hint = f" ({_HINTS[code]})" if code in _HINTS else ""
    return _class_of(code, status)(f"{code}: {message}{hint}")


def _class_of(code: str, status: int) -> type[ProviderError]:
    if code in _THROTTLED or code.startswith("Throttl") or status == 429:
        return Throttled
    if code in _NO_CAPACITY:
        return NoCapacity
    if code in _QUOTA or code.endswith("LimitExceeded"):
        return QuotaExceeded
    if code in _UNREACHABLE or status >= 500:
        return Unreachable
    return Misconfigured
