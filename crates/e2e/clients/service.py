"""dispense.DispenseService as a generated Python client sees it: stubs by grpcio-tools from the proto files.

Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY, STUBS (where grpc_tools.protoc wrote)."""

import os
import sys

import grpc

sys.path.insert(0, os.environ["STUBS"])
import common_pb2  # noqa: E402
import dispense_pb2  # noqa: E402
import dispense_pb2_grpc  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

KEY = [("authorization", "Bearer " + os.environ["DISPENSE_API_KEY"])]
INLINE = KEY + [("x-dispense-errors", "inline")]

channel = grpc.insecure_channel(os.environ["DISPENSE_ADDRESS"])
service = dispense_pb2_grpc.DispenseServiceStub(channel)


def refused(code, call, request, metadata=KEY):
    """The call fails with this status code; its message."""
    try:
        call(request, metadata=metadata, timeout=30)
    except grpc.RpcError as error:
        assert error.code() == code, (error.code(), error.details())
        trailing = dict(error.trailing_metadata())
        assert b"google.rpc.ErrorInfo" in trailing["grpc-status-details-bin"], trailing
        return error.details()
    raise AssertionError(f"it was not refused: {request}")


def create(**fields):
    resources = common_pb2.ResourceAllocation(cpu=1, memory=1)
    request = dispense_pb2.CreateSandboxRequest(resources=resources, **fields)
    return service.CreateSandbox(request, metadata=KEY, timeout=30).sandbox


def life_of_a_sandbox():
    made = create(name="py", group="demo")
    assert made.id.startswith("sbx") and made.name == "py" and made.group == "demo", made
    assert made.type == common_pb2.SANDBOX_TYPE_LOCAL, made
    assert made.created_at.seconds > 0 and "py" in made.shell_command, made
    wait = dispense_pb2.WaitForSandboxRequest(identifier="py", timeout_seconds=30)
    waited = service.WaitForSandbox(wait, metadata=KEY, timeout=60)
    assert waited.success, waited
    got = service.GetSandbox(dispense_pb2.GetSandboxRequest(identifier=made.id), metadata=KEY).sandbox
    assert got.state == "running" and got.metadata["generation"] == "1", got
    # The next generation does not come by itself.
    later = dispense_pb2.WaitForSandboxRequest(identifier="py", timeout_seconds=1, generation=2)
    refused(grpc.StatusCode.DEADLINE_EXCEEDED, service.WaitForSandbox, later)
    again = dispense_pb2.CreateSandboxRequest(name="py")
    assert "py" in refused(grpc.StatusCode.ALREADY_EXISTS, service.CreateSandbox, again)
    replaced = create(name="py", group="demo", force=True)
    assert replaced.id != made.id, replaced
    gone = service.DeleteSandbox(dispense_pb2.DeleteSandboxRequest(identifier="py"), metadata=KEY, timeout=60)
    assert gone.success and gone.message, gone
    refused(grpc.StatusCode.NOT_FOUND, service.GetSandbox, dispense_pb2.GetSandboxRequest(identifier="py"))


def groups_and_pages():
    for number in range(5):
        create(name=f"page-{number}", group="pages")
    waited = service.WaitForSandbox(
        dispense_pb2.WaitForSandboxRequest(group="pages", timeout_seconds=60), metadata=KEY, timeout=90
    )
    assert waited.success and "5" in waited.message, waited
    names, token = [], ""
    while True:
        page = service.ListSandboxes(
            dispense_pb2.ListSandboxesRequest(group="pages", page_size=2, page_token=token), metadata=KEY
        )
        assert len(page.sandboxes) <= 2
        names += [sandbox.name for sandbox in page.sandboxes]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"page-{number}" for number in reversed(range(5))], names
    count = lambda **fields: len(
        service.ListSandboxes(dispense_pb2.ListSandboxesRequest(group="pages", **fields), metadata=KEY).sandboxes
    )
    assert count(show_local=True) == 5 and count(show_remote=True) == 0
    assert count(show_local=True, show_remote=True) == 5 and count(states=["failed"]) == 0
    gone = service.DeleteSandbox(dispense_pb2.DeleteSandboxRequest(group="pages"), metadata=KEY, timeout=60)
    assert gone.success and "5" in gone.message, gone
    left = service.ListSandboxes(dispense_pb2.ListSandboxesRequest(group="pages", states=["running"]), metadata=KEY)
    assert not left.sandboxes, left


def refusals():
    empty = dispense_pb2.GetSandboxRequest()
    assert "identifier" in refused(grpc.StatusCode.INVALID_ARGUMENT, service.GetSandbox, empty)
    bad = dispense_pb2.CreateSandboxRequest(resources=common_pb2.ResourceAllocation(cpu=-1))
    assert "resources.cpu" in refused(grpc.StatusCode.INVALID_ARGUMENT, service.CreateSandbox, bad)
    remote = dispense_pb2.CreateSandboxRequest(is_remote=True)
    refused(grpc.StatusCode.FAILED_PRECONDITION, service.CreateSandbox, remote)
    task = dispense_pb2.CreateSandboxRequest(task="write a poem")
    refused(grpc.StatusCode.FAILED_PRECONDITION, service.CreateSandbox, task)
    refused(grpc.StatusCode.INVALID_ARGUMENT, service.DeleteSandbox, dispense_pb2.DeleteSandboxRequest())
    both = dispense_pb2.DeleteSandboxRequest(identifier="x", delete_all=True)
    refused(grpc.StatusCode.INVALID_ARGUMENT, service.DeleteSandbox, both)
    nobody = [("authorization", "Bearer dsp_" + "0" * 40)]
    refused(grpc.StatusCode.UNAUTHENTICATED, service.ListSandboxes, dispense_pb2.ListSandboxesRequest(), nobody)


def errors_in_the_response():
    got = service.GetSandbox(dispense_pb2.GetSandboxRequest(identifier="nobody"), metadata=INLINE)
    assert got.error.code == "not_found" and got.error.details["sandbox"] == "nobody", got
    gone = service.DeleteSandbox(dispense_pb2.DeleteSandboxRequest(), metadata=INLINE)
    assert not gone.success and gone.error.code == "invalid_argument", gone
    assert gone.error.details["field"] == "identifier", gone
    # Also of a refusal before the service is reached.
    stranger = [("x-dispense-errors", "inline")]
    listed = service.ListSandboxes(dispense_pb2.ListSandboxesRequest(), metadata=stranger)
    assert listed.error.code == "unauthenticated", listed


def tasks():
    create(name="agent")
    run = dispense_pb2.RunClaudeTaskRequest(sandbox_identifier="agent", task_description="x")
    try:
        list(service.RunClaudeTask(run, metadata=KEY))
        raise AssertionError("there are no tasks yet")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    last = list(service.RunClaudeTask(run, metadata=INLINE))[-1]
    assert last.type == dispense_pb2.RunClaudeTaskResponse.ERROR and last.is_finished, last
    status = dispense_pb2.GetClaudeStatusRequest(sandbox_identifier="agent")
    refused(grpc.StatusCode.FAILED_PRECONDITION, service.GetClaudeStatus, status)
    logs = dispense_pb2.GetClaudeLogsRequest(sandbox_identifier="agent")
    refused(grpc.StatusCode.FAILED_PRECONDITION, service.GetClaudeLogs, logs)
    service.DeleteSandbox(dispense_pb2.DeleteSandboxRequest(identifier="agent"), metadata=KEY)


def provider_key():
    refused(grpc.StatusCode.NOT_FOUND, service.GetAPIKey, dispense_pb2.GetAPIKeyRequest())
    wrong = dispense_pb2.ValidateAPIKeyRequest(api_key="nonsense")
    assert not service.ValidateAPIKey(wrong, metadata=KEY).valid
    refused(grpc.StatusCode.INVALID_ARGUMENT, service.SetAPIKey, dispense_pb2.SetAPIKeyRequest(api_key="nonsense"))
    key = "sk-test-0123456789abcdef"
    assert service.ValidateAPIKey(dispense_pb2.ValidateAPIKeyRequest(api_key=key), metadata=KEY).valid
    assert service.SetAPIKey(dispense_pb2.SetAPIKeyRequest(api_key=key), metadata=KEY).success
    assert service.GetAPIKey(dispense_pb2.GetAPIKeyRequest(), metadata=KEY).api_key == key


def health():
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ["", "dispense.DispenseService"]:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, (name, answer)


for part in [life_of_a_sandbox, groups_and_pages, refusals, errors_in_the_response, tasks, provider_key, health]:
    part()
    print("ok", part.__name__)
