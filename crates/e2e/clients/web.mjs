// The same service over gRPC-Web, as a browser speaks it, with messages from a descriptor set.
// Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY, DESCRIPTORS (the file).

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createFileRegistry, fromBinary } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { Code, createClient } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-node';

const { DISPENSE_ADDRESS, DISPENSE_API_KEY, DESCRIPTORS } = process.env;
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(DESCRIPTORS)));
const transport = createGrpcWebTransport({ baseUrl: `http://${DISPENSE_ADDRESS}`, httpVersion: '1.1' });
const service = createClient(registry.getService('dispense.DispenseService'), transport);
const processes = createClient(registry.getService('dispense.v1.ProcessService'), transport);
const headers = { authorization: `Bearer ${DISPENSE_API_KEY}` };

const made = await service.createSandbox({ name: 'web', resources: { cpu: 1, memory: 1 } }, { headers });
assert.equal(made.sandbox.name, 'web');
const waited = await service.waitForSandbox({ identifier: 'web', timeoutSeconds: 30 }, { headers });
assert.equal(waited.success, true);
await assert.rejects(service.getSandbox({ identifier: 'nobody' }, { headers }), { code: Code.NotFound });
await assert.rejects(service.getSandbox({ identifier: 'web' }), { code: Code.Unauthenticated });
const inline = await service.getSandbox(
  { identifier: 'nobody' },
  { headers: { ...headers, 'x-dispense-errors': 'inline' } },
);
assert.equal(inline.error.code, 'not_found');

// A call that the sandbox's agent answers passes the same way.
const started = await processes.startProcess({ sandbox: 'web', start: { args: ['true'] } }, { headers });
assert.ok(started.pid > 0);

const gone = await service.deleteSandbox({ identifier: 'web' }, { headers });
assert.equal(gone.success, true);
console.log('ok');
