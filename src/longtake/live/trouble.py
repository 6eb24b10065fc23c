"""What a client is told when something cannot be done."""

from __future__ import annotations

STATUSES = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "not_json": 415,
    "bad_range": 416,
    "wrong_host": 421,
    "invalid": 422,
    "too_many": 429,
    "failed": 500,
    "busy": 503,
    "no_space": 507,
}
RETRY_AFTER = {"too_many": 1, "busy": 10}  # seconds


class Trouble(Exception):
    """A request that is refused.

    Args:
        code: one of ``STATUSES``.
        message: one sentence for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, STATUSES[code]

    @property
    def headers(self) -> dict[str, str]:
        """That go with the answer."""
        if self.code in RETRY_AFTER:
            return {"Retry-After": str(RETRY_AFTER[self.code])}
        return {"WWW-Authenticate": "Bearer"} if self.code == "unauthorized" else {}

    def to_dict(self) -> dict[str, dict[str, str]]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}
