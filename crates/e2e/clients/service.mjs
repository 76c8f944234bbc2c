// dispense.DispenseService from Node: @grpc/grpc-js with messages that @grpc/proto-loader reads from the proto files.
// Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY, PROTO (the folder).

import assert from 'node:assert/strict';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const { DISPENSE_ADDRESS, DISPENSE_API_KEY, PROTO } = process.env;
const definition = loader.loadSync(`${PROTO}/dispense.proto`, { keepCase: true, includeDirs: [PROTO], enums: String });
const { DispenseService } = grpc.loadPackageDefinition(definition).dispense;
const client = new DispenseService(DISPENSE_ADDRESS, grpc.credentials.createInsecure());

function metadata(extra = {}) {
  const all = new grpc.Metadata();
  for (const [name, value] of Object.entries({ 'x-api-key': DISPENSE_API_KEY, ...extra })) all.set(name, value);
  return all;
}

function call(method, request, extra) {
  return new Promise((resolve, reject) => {
    const deadline = { deadline: Date.now() + 60_000 };
    client[method](request, metadata(extra), deadline, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

const { sandbox } = await call('CreateSandbox', { name: 'node', group: 'js', resources: { cpu: 1, memory: 1 } });
assert.equal(sandbox.name, 'node');
assert.equal(sandbox.type, 'SANDBOX_TYPE_LOCAL');
const waited = await call('WaitForSandbox', { identifier: sandbox.id, timeout_seconds: 30 });
assert.equal(waited.success, true);
const got = await call('GetSandbox', { identifier: 'node' });
assert.equal(got.sandbox.state, 'running');
const list = await call('ListSandboxes', { group: 'js', verbose: true });
assert.equal(list.sandboxes.length, 1);
assert.equal(list.sandboxes[0].metadata.template, 'host');

await assert.rejects(call('GetSandbox', { identifier: 'nobody' }), { code: grpc.status.NOT_FOUND });
await assert.rejects(call('GetSandbox', {}, { 'x-api-key': 'dsp_wrong' }), { code: grpc.status.UNAUTHENTICATED });
const inline = await call('GetSandbox', { identifier: 'nobody' }, { 'x-dispense-errors': 'inline' });
assert.equal(inline.error.code, 'not_found');

const events = client.RunClaudeTask({ sandbox_identifier: 'node', task_description: 'x' }, metadata());
const ended = await new Promise((resolve) => events.on('data', () => {}).on('error', resolve));
assert.equal(ended.code, grpc.status.FAILED_PRECONDITION);

const gone = await call('DeleteSandbox', { identifier: 'node' });
assert.equal(gone.success, true);
client.close();
console.log('ok');
