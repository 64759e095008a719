"""What the API answers where it cannot do what was asked: OpenAI's error objects."""

from typing import Any


class ApiError(Exception):
    """A refusal, as the client is told it.

    Args:
        status: of HTTP.
        message: one line that says what is wrong and what to do.
        param: the field that is wrong.
        code: a word for programs.
        kind: whose fault it is; by default, as the status says.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A field that is not as it must be."""
    return ApiError(400, f"Invalid '{param}': {message}.", param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A field that OpenAI's API has, with a value that this server cannot honour."""
    return ApiError(400, f"Unsupported '{param}': {message}.", param=param, code="unsupported_value")


def busy(why: str) -> ApiError:
    """A request that the server has no room for now."""
    return ApiError(
        429,
        f"The server is busy: {why}. Try again in a moment.",
        code="rate_limit_exceeded",
        kind="rate_limit_error",
    )
