// The same as "grpcxds call TARGET", in JavaScript.
'use strict';

const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');

xds.register();

const Client = grpc.makeGenericClientConstructor({}, 'TestService', {});
const client = new Client(process.argv[2], new xds.XdsChannelCredentials(grpc.credentials.createInsecure()));

// The only field of the answer is a text with the number 4.
const nameIn = (b) => (b.length > 1 && b[0] === 0x22 ? b.subarray(2, 2 + b[1]).toString() : '');

function once(method) {
  const path = '/grpc.testing.TestService/' + (method === 'retried' ? 'EmptyCall' : 'UnaryCall');
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(path, (x) => x, nameIn, Buffer.alloc(0), new grpc.Metadata(), { deadline: Date.now() + 5000 },
      (err, name) => (err ? reject(err) : resolve(method === 'retried' ? 'anybody' : name)));
  });
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [n, method] = line.split(' ');
    const answers = {}, failures = {};
    for (let i = 0; i < Number(n); i++) {
      try {
        const name = await once(method);
        answers[name] = (answers[name] || 0) + 1;
      } catch (err) {
        failures[err.code] = (failures[err.code] || 0) + 1;
        console.error(err.message);
      }
    }
    console.log(JSON.stringify({ answers, failures }));
  }
  process.exit(0);
})();
