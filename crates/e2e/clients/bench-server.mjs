// The other side of `cargo xtask bench api`: a minimal server on @grpc/grpc-js that answers GetSandbox from memory,
// with nothing around it. Prints its port.
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const { PROTO } = process.env;
const definition = loader.loadSync(`${PROTO}/dispense.proto`, { keepCase: true, includeDirs: [PROTO], enums: String });
const { DispenseService } = grpc.loadPackageDefinition(definition).dispense;
const sandboxes = new Map();
const server = new grpc.Server();
server.addService(DispenseService.service, {
  CreateSandbox: ({ request }, answer) => {
    const sandbox = { id: `sbx${sandboxes.size}`, name: request.name, state: 'running' };
    sandboxes.set(sandbox.id, sandbox);
    answer(null, { sandbox });
  },
  GetSandbox: ({ request }, answer) => {
    const sandbox = sandboxes.get(request.identifier);
    if (sandbox) answer(null, { sandbox });
    else answer({ code: grpc.status.NOT_FOUND, message: 'no such sandbox' });
  },
});
server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(port);
});
