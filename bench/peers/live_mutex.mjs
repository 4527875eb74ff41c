// The load of P1, P2 and P3 on live-mutex, which has a client in JavaScript: what `load.py`,
// `tasks.py` and `line.py` do for the others. Prints one line of figures as JSON.
//
//   node live_mutex.mjs P1 --port 6970 --server-pid 4711 --seconds 3

import events from "node:events";
import fs from "node:fs";
import { parseArgs } from "node:util";
import lmx from "live-mutex";

const TICKS_A_SECOND = 100; // USER_HZ, which is the same on every Linux.
const TTL_MS = 30_000;
const APART_MS = 10;
const PERCENTILES = [
  ["p5_ms", 0.05], ["p25_ms", 0.25], ["p50_ms", 0.5], ["p75_ms", 0.75],
  ["p95_ms", 0.95], ["p99_ms", 0.99], ["p999_ms", 0.999],
];

events.defaultMaxListeners = 100; // Each client listens for the end of the process.

const { values: asked, positionals: [shape] } = parseArgs({
  allowPositionals: true,
  options: {
    port: { type: "string" },
    "server-pid": { type: "string" },
    "warm-up": { type: "string", default: "0.5" },
    seconds: { type: "string", default: "3" },
  },
});
const names = `bench/${process.pid}`;
const nowMs = () => performance.now();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function serverCpuS() {
  const afterName = fs.readFileSync(`/proc/${asked["server-pid"]}/stat`, "utf8").split(") ").pop().split(" ");
  return (Number(afterName[11]) + Number(afterName[12])) / TICKS_A_SECOND;
}

async function clients(count) {
  const opened = Array.from({ length: count }, () => new lmx.Client({
    host: "127.0.0.1", port: Number(asked.port), ttl: TTL_MS, lockRequestTimeout: TTL_MS,
  }));
  for (const client of opened) await client.ensure();
  return opened;
}

function acquire(client, name) {
  return new Promise((resolve, reject) => {
    client.lock(name, (error, unlock) => (error ? reject(error) : resolve(unlock)));
  });
}

function release(unlock) {
  return new Promise((resolve, reject) => {
    unlock((error, answer) => (error || !answer.unlocked ? reject(error ?? answer) : resolve()));
  });
}

// Runs the workers; the figures are of the time after the warm-up. `counted` says how far they are.
async function during(workers, counted, onBegin = () => {}) {
  const work = Promise.all(workers); // Never fulfilled: a worker that fails ends the run.
  await Promise.race([work, sleep(Number(asked["warm-up"]) * 1000)]);
  onBegin();
  const before = { at: nowMs(), counted: counted(), cpu: process.cpuUsage(), server: serverCpuS() };
  await Promise.race([work, sleep(Number(asked.seconds) * 1000)]);
  const wallS = (nowMs() - before.at) / 1000;
  const cpu = process.cpuUsage(before.cpu);
  return {
    rate: (counted() - before.counted) / wallS,
    load_cpu: (cpu.user + cpu.system) / 1e6 / wallS,
    server_cpu: (serverCpuS() - before.server) / wallS,
  };
}

async function cycles(opened, workersCount) {
  let count = 0;
  async function worker(place) {
    const client = opened[place % opened.length];
    for (;;) {
      await release(await acquire(client, `${names}/${place}`));
      count += 1;
    }
  }
  const workers = Array.from({ length: workersCount }, (_, place) => worker(place));
  return during(workers, () => count);
}

function percentile(values, share) {
  const ordered = Float64Array.from(values).sort();
  return ordered[Math.min(ordered.length - 1, Math.floor(ordered.length * share))];
}

function sum(values) {
  return values.reduce((total, each) => total + each, 0);
}

// Jain's index.
function fairness(grants) {
  return sum(grants) ** 2 / (grants.length * sum(grants.map((each) => each ** 2)));
}

// The rules are those of `line.py`: who released asks again once the next holder has been seen, and
// a grant is out of order if somebody waits who had asked before its receiver last gave it back.
// The figures are those of `hand_offs.py`.
async function handOffs(opened) {
  const askedAt = opened.map(() => Infinity);
  const gaveBackAt = opened.map(() => Infinity);
  const passedOn = opened.map(() => () => {});
  const grants = opened.map(() => 0);
  const latenciesMs = [];
  let counts = false, handedOff = 0, outOfOrder = 0, holder = null, last = null, releasedAt = null;

  function granted(place) {
    const now = nowMs();
    if (holder !== null) throw new Error(`waiters ${holder} and ${place} hold the same lock`);
    holder = place;
    const lastAt = Math.min(askedAt[place], gaveBackAt[place]);
    askedAt[place] = Infinity;
    if (counts && releasedAt !== null) {
      latenciesMs.push(now - releasedAt);
      grants[place] += 1;
      if (Math.min(...askedAt) < lastAt) outOfOrder += 1;
    }
    handedOff += 1;
  }

  async function waiter(place) {
    await sleep(place * APART_MS);
    for (;;) {
      const nextSeen = new Promise((resolve) => { passedOn[place] = resolve; });
      askedAt[place] = nowMs();
      const unlock = await acquire(opened[place], `${names}/contested`);
      granted(place);
      if (last !== null) passedOn[last]();
      last = place;
      holder = null;
      releasedAt = gaveBackAt[place] = nowMs();
      await release(unlock);
      await nextSeen;
    }
  }

  const shares = await during(
    opened.map((_, place) => waiter(place)), () => handedOff, () => { counts = true; },
  );
  if (latenciesMs.length === 0) throw new Error("the lock was handed to nobody");
  const percentiles = PERCENTILES.map(([name, share]) => [name, percentile(latenciesMs, share)]);
  return {
    ...shares,
    ...Object.fromEntries(percentiles),
    hand_offs: latenciesMs.length,
    out_of_order: outOfOrder,
    fairness: fairness(grants),
    least_share: Math.min(...grants) * grants.length / sum(grants),
  };
}

const shapes = {
  P1: async () => cycles(await clients(1), 50),
  P2: async () => {
    const figures = await cycles(await clients(50), 50);
    return { ...figures, rate: 2 * figures.rate }; // Messages, as everybody's.
  },
  P3: async () => handOffs(await clients(20)),
};

console.log(JSON.stringify(await shapes[shape]()));
process.exit(0);
