"""The enumerations and handles of `cuda.bindings.runtime`, with the driver's texts for its error codes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureIsolation = 905
    cudaErrorCapturedEvent = 907
    cudaErrorStreamCaptureWrongThread = 908
    cudaErrorUnknown = 999


TEXTS = {
    0: b"no error",
    1: b"invalid argument",
    2: b"out of memory",
    101: b"invalid device ordinal",
    400: b"invalid resource handle",
    401: b"the operation cannot be performed in the present state",
    600: b"device not ready",
    700: b"an illegal memory access was encountered",
    719: b"unspecified launch failure",
    801: b"operation not supported",
    900: b"operation not permitted when stream is capturing",
    901: b"operation failed due to a previous error during capture",
    905: b"dependency created on uncaptured work in another stream",
    907: b"operation not permitted on an event last recorded in a capturing stream",
    908: b"attempt to terminate a thread-local capture sequence from another thread",
    999: b"unknown error",
}


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStreamCaptureStatus(IntEnum):
    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


@dataclass(frozen=True)
class Handle:
    """What a caller holds of a stream, event or graph: opaque, but for its address."""

    address: int

    def __int__(self) -> int:
        return self.address
