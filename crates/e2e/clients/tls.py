"""gRPC over TLS, with an authority from a file.

Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY, CA_FILE."""

import os

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with open(os.environ["CA_FILE"], "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
channel = grpc.secure_channel(os.environ["DISPENSE_ADDRESS"], credentials)
answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
assert answer.status == health_pb2.HealthCheckResponse.SERVING, answer

# Without the authority there is no connection.
stranger = grpc.secure_channel(os.environ["DISPENSE_ADDRESS"], grpc.ssl_channel_credentials())
try:
    health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest(), timeout=10)
    raise AssertionError("it was believed")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
print("ok")
