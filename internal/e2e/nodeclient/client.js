// Uses an agent as the module "consul" does: each step fails the program when the answer is not what it expects.
'use strict';

const assert = require('node:assert');
const Consul = require('consul');

const consul = new Consul({ host: '127.0.0.1', port: process.argv[2] });

// changed waits for a watch to give what is wanted.
function changed(options, wanted) {
  return new Promise((resolve, reject) => {
    const watch = consul.watch({ backoffFactor: 50, ...options });
    const late = setTimeout(() => { watch.end(); reject(new Error(`no change of ${JSON.stringify(options.options)}`)); }, 30000);
    watch.on('change', (data, res) => {
      if (!wanted(data, res)) return;
      clearTimeout(late);
      watch.end();
      resolve(data);
    });
    watch.on('error', (err) => { if (err.isResponse && err.response.statusCode !== 404) { watch.end(); reject(err); } });
  });
}

const steps = {
  async kv() {
    assert.strictEqual(await consul.kv.get('js/none'), undefined);
    assert.strictEqual(await consul.kv.set('js/a', 'één'), true);
    const entry = await consul.kv.get('js/a');
    assert.strictEqual(entry.Value, 'één');
    assert.ok(!await consul.kv.set({ key: 'js/a', value: 'two', cas: '1' }));
    assert.strictEqual(await consul.kv.set({ key: 'js/a', value: 'two', cas: entry.ModifyIndex, flags: 7 }), true);
    assert.strictEqual((await consul.kv.get('js/a')).Flags, 7);
    assert.strictEqual(await consul.kv.get({ key: 'js/a', raw: true }).then(String), 'two');
    await consul.kv.set('js/b/c', Buffer.from([0, 255]));
    assert.deepStrictEqual((await consul.kv.get({ key: 'js/b/c', buffer: true })).Value, Buffer.from([0, 255]));
    assert.deepStrictEqual(await consul.kv.keys('js/'), ['js/a', 'js/b/c']);
    assert.deepStrictEqual(await consul.kv.keys({ key: 'js/', separator: '/' }), ['js/a', 'js/b/']);
    assert.strictEqual((await consul.kv.get({ key: 'js/', recurse: true })).length, 2);
    const seen = changed({ method: consul.kv.get, options: { key: 'js/watched' } }, (e) => e && e.Value === 'now');
    await consul.kv.set('js/watched', 'before');
    await consul.kv.set('js/watched', 'now');
    await seen;
    assert.strictEqual(await consul.kv.del({ key: 'js/', recurse: true }), true);
    assert.strictEqual(await consul.kv.get('js/a'), undefined);
  },

  async sessions() {
    const one = (await consul.session.create({ name: 'one', ttl: '15s', lockdelay: '0s', behavior: 'delete' })).ID;
    const two = (await consul.session.create({ name: 'two' })).ID;
    assert.strictEqual((await consul.session.get(one)).Behavior, 'delete');
    assert.strictEqual((await consul.session.renew(one))[0].TTL, '15s');
    assert.strictEqual((await consul.session.list()).length, 2);
    assert.strictEqual((await consul.session.node('one')).length, 2);
    assert.strictEqual(await consul.kv.set({ key: 'js/lock', value: '1', acquire: one }), true);
    assert.ok(!await consul.kv.set({ key: 'js/lock', value: '2', acquire: two }));
    const entry = await consul.kv.get('js/lock');
    assert.strictEqual(entry.Session, one);
    const free = changed({ method: consul.kv.get, options: { key: 'js/lock', index: entry.ModifyIndex } }, (e) => e === undefined);
    await consul.session.destroy(one);
    await free;
    assert.strictEqual(await consul.kv.set({ key: 'js/lock', value: '2', acquire: two }), true);
    assert.strictEqual(await consul.kv.set({ key: 'js/lock', value: '2', release: two }), true);
    await consul.session.destroy(two);
  },

  async services() {
    await consul.agent.service.register({
      name: 'jsweb', id: 'jsweb-1', address: '127.0.0.9', port: 80, tags: ['a'], meta: { m: '1' },
      check: { name: 'alive', ttl: '30s' },
    });
    const [id] = Object.values(await consul.agent.check.list()).filter((c) => c.ServiceID === 'jsweb-1').map((c) => c.CheckID);
    const seen = changed({ method: consul.health.service, options: { service: 'jsweb', passing: true } }, (l) => l.length === 1);
    await consul.agent.check.pass({ id, note: 'fine' });
    const [instance] = await seen;
    assert.strictEqual(instance.Service.Address, '127.0.0.9');
    assert.strictEqual(instance.Checks.find((c) => c.CheckID === id).Output, 'fine');
    await changed({ method: consul.catalog.service.list, options: {} }, (l) => l.jsweb && l.jsweb[0] === 'a');
    assert.strictEqual((await consul.catalog.service.nodes('jsweb'))[0].ServiceMeta.m, '1');
    assert.deepStrictEqual((await consul.agent.service.list())['jsweb-1'].Tags, ['a']);
    const gone = changed({ method: consul.health.service, options: { service: 'jsweb', passing: true } }, (l) => l.length === 0);
    await consul.agent.check.fail(id);
    await gone;
    await changed({ method: consul.health.state, options: { state: 'critical' } }, (l) => l.some((c) => c.CheckID === id));
    await consul.agent.service.maintenance({ id: 'jsweb-1', enable: true, reason: 'work' });
    assert.ok((await consul.agent.check.list())['_service_maintenance:jsweb-1']);
    await consul.agent.service.maintenance({ id: 'jsweb-1', enable: false });
    const left = changed({ method: consul.catalog.service.nodes, options: { service: 'jsweb' } }, (l) => l.length === 0);
    await consul.agent.service.deregister('jsweb-1');
    await left;
    await consul.agent.check.register({ name: 'own', ttl: '10s' });
    await consul.agent.check.warn('own');
    await consul.agent.check.deregister('own');
    await assert.rejects(consul.agent.check.pass('own'), (err) => err.isResponse && err.response.statusCode === 404);
  },

  async catalog() {
    await consul.catalog.register({ node: 'outside', address: '127.0.0.8', service: { service: 'jsdb', port: 5432 } });
    assert.strictEqual((await consul.catalog.node.services('outside')).Services.jsdb.Port, 5432);
    assert.ok((await consul.catalog.node.list()).some((n) => n.Node === 'outside'));
    await consul.catalog.deregister('outside');
    assert.deepStrictEqual(await consul.catalog.datacenters(), ['dc1']);
    assert.deepStrictEqual(await consul.catalog.connect.nodes('jsdb'), []);
  },

  async others() {
    assert.match(await consul.status.leader(), /^127\.0\.0\.1:\d+$/);
    assert.strictEqual((await consul.status.peers()).length, 1);
    assert.strictEqual((await consul.agent.self()).Config.NodeName, 'one');
    assert.strictEqual((await consul.agent.members())[0].Status, 1);
    const event = await consul.event.fire('deploy', '53');
    for (let i = 0; i < 300 && !(await consul.event.list('deploy')).some((e) => e.ID === event.ID && e.Payload === '53'); i++) {
      await new Promise((r) => setTimeout(r, 100));
    }
    assert.ok((await consul.event.list('deploy')).some((e) => e.ID === event.ID));
    const { ID: query } = await consul.query.create({ name: 'jsquery', service: { service: 'consul', failover: { nearestn: 3 } }, dns: { ttl: '10s' } });
    assert.strictEqual((await consul.query.get(query)).Name, 'jsquery');
    assert.strictEqual((await consul.query.execute('jsquery')).Nodes.length, 1);
    await consul.query.update({ query, name: 'jsquery', service: { service: 'nobody' } });
    assert.strictEqual((await consul.query.execute(query)).Nodes.length, 0);
    await consul.query.destroy(query);
    assert.deepStrictEqual(await consul.query.list(), []);
    const done = await consul.transaction.create([
      { KV: { Verb: 'set', Key: 'js/t', Value: Buffer.from('x').toString('base64') } },
      { KV: { Verb: 'get', Key: 'js/t' } },
    ]);
    assert.strictEqual(done.Results.length, 2);
    await assert.rejects(consul.transaction.create([{ KV: { Verb: 'check-not-exists', Key: 'js/t' } }]),
      (err) => err.isResponse && err.response.statusCode === 409);
    await assert.rejects(consul.acl.bootstrap(), (err) => err.isResponse && err.response.statusCode === 401);
  },
};

(async () => {
  for (const [name, step] of Object.entries(steps)) {
    await step().catch((err) => { err.message = `${name}: ${err.message}`; throw err; });
    console.log(`ok ${name}`);
  }
  process.exit(0);
})().catch((err) => { console.error(err); process.exit(1); });
