"""What a call that ends with INVALID_ARGUMENT says in its details."""

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # generated, ships no types
from grpc_status import rpc_status


def violations(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    """The field and the reason of each violation that the BadRequest details of an error name."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads
    assert status is not None
    bad_request = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad_request)
    return [(one.field, one.description) for one in bad_request.field_violations]
