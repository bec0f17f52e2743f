"""EC2's refusals (AWS: "Error codes for the Amazon EC2 API") and their XML."""

from __future__ import annotations

from xml.sax.saxutils import escape


class ApiError(Exception):
    """A refusal with EC2's own code. `status`: 400 for the client's fault, 500 and 503 else."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status

    def xml(self, request_id: str) -> bytes:
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Response><Errors><Error><Code>{escape(self.code)}</Code>"
            f"<Message>{escape(self.message)}</Message></Error></Errors>"
            f"<RequestID>{request_id}</RequestID></Response>"
        ).encode()


def invalid(message: str, code: str = "InvalidParameterValue") -> ApiError:
    return ApiError(code, message)


def insufficient_capacity(type_name: str, zone: str) -> ApiError:
    return ApiError(
        "InsufficientInstanceCapacity",
        f"We currently do not have sufficient {type_name} capacity in the Availability Zone you "
        f"requested ({zone}). Our system will be working on provisioning additional capacity.",
        500,
    )


def throttled() -> ApiError:
    return ApiError("RequestLimitExceeded", "Request limit exceeded.", 503)


def token_mismatch() -> ApiError:
    return ApiError(
        "IdempotentParameterMismatch",
        "The client token you have provided is associated with a resource already deleted or with "
        "different request parameters. Please use a different client token.",
    )
