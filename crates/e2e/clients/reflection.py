"""A client that knows nothing but an address: it learns the service by reflection and calls it.

Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY."""

import os

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class WithKey(grpc.StreamStreamClientInterceptor, grpc.UnaryUnaryClientInterceptor):
    def with_key(self, details):
        key = ("authorization", "Bearer " + os.environ["DISPENSE_API_KEY"])
        return details._replace(metadata=[*(details.metadata or []), key])

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(self.with_key(details), requests)

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self.with_key(details), request)


open_channel = grpc.insecure_channel(os.environ["DISPENSE_ADDRESS"])
channel = grpc.intercept_channel(open_channel, WithKey())

# Nobody looks without a key.
request = reflection_pb2.ServerReflectionRequest(list_services="")
try:
    list(reflection_pb2_grpc.ServerReflectionStub(open_channel).ServerReflectionInfo(iter([request])))
    raise AssertionError("it was not refused")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error

database = ProtoReflectionDescriptorDatabase(channel)
services = list(database.get_services())
assert "dispense.DispenseService" in services and "dispense.v1.SandboxService" in services, services
assert not [name for name in services if "runner" in name or "agent" in name], services

pool = descriptor_pool.DescriptorPool(database)
service = pool.FindServiceByName("dispense.DispenseService")
assert len(service.methods) == 11, [method.name for method in service.methods]
method = service.FindMethodByName("ListSandboxes")
request = message_factory.GetMessageClass(method.input_type)(verbose=True)
response = message_factory.GetMessageClass(method.output_type)
call = channel.unary_unary(
    f"/{service.full_name}/{method.name}",
    request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=response.FromString,
)
assert list(call(request, timeout=10).sandboxes) == []
print("ok", len(services), "services")
