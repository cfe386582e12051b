"""Ranks the models of a hub for a prompt, in process and before anything runs.

>>> import hubrouter
>>> router = hubrouter.Router(device="cpu")
>>> decision = router.route("Which bird is singing in this recording?", top=3)
>>> len(decision.ranked), decision.ranked[0].domain
(3, 'Audio Audio Classification')

The package has a router for 2,127 models; `hubrouter.Router("my-store")` opens another. Errors are
subclasses of `hubrouter.Error`, one for each kind.
"""

from hubrouter._native import (
    ArrowColumn,
    ArrowRoutes,
    Decision,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    DomainScore,
    Error,
    Explanation,
    FeedbackLog,
    FormatError,
    Hub,
    InvalidRequestError,
    IoError,
    LimitsError,
    MismatchError,
    Model,
    NoAdapterError,
    NoCandidateError,
    NumericError,
    OutOfMemoryError,
    OverloadedError,
    PanicError,
    Policy,
    Progress,
    Ranked,
    RefusedError,
    Request,
    Router,
    StoreWatch,
    TokenizerError,
    UnsupportedError,
    __version__,
    build,
    learn,
)

__all__ = [
    "ArrowColumn",
    "ArrowRoutes",
    "DeadlineError",
    "Decision",
    "DeviceError",
    "DeviceLostError",
    "DomainScore",
    "Error",
    "Explanation",
    "FeedbackLog",
    "FormatError",
    "Hub",
    "InvalidRequestError",
    "IoError",
    "LimitsError",
    "MismatchError",
    "Model",
    "NoAdapterError",
    "NoCandidateError",
    "NumericError",
    "OutOfMemoryError",
    "OverloadedError",
    "PanicError",
    "Policy",
    "Progress",
    "Ranked",
    "RefusedError",
    "Request",
    "Router",
    "StoreWatch",
    "TokenizerError",
    "UnsupportedError",
    "__version__",
    "build",
    "learn",
]
