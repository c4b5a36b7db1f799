// A port of the method to JavaScript (Node, no package), from the equations (docs/equations.md): every stage of every
// case of a pack, by lines of JSON with arrays as base64.
//
//     ide-ref conformance run -- node port.js
//
// Every connection is a matrix whose entries point into its weights (`tie`), so that one code serves dense layers,
// convolutions and transposed convolutions, forward and back. States are (B, n), neurons as (channel, row, column).
"use strict";

const TYPES = { float64: Float64Array, float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array };
const size = (shape) => shape.reduce((product, n) => product * n, 1);

function decode({ dtype, shape, data }) {
  const bytes = Buffer.from(data, "base64");
  const own = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length); // aligned
  return { shape, v: Float64Array.from(new TYPES[dtype](own), Number) };
}

function encode(dtype, shape, v) {
  const data = Buffer.from(TYPES[dtype].from(v).buffer).toString("base64");
  return { dtype, shape, data };
}

function tie({ kind, kernel: k, stride, padding }, source, target) {
  const from = size(source), found = new Int32Array(size(target) * from).fill(-1);
  if (kind === "dense") return found.map((_, i) => i);
  const back = kind === "conv_transpose"; // a convolution in reverse
  const [small, large] = back ? [source, target] : [target, source];
  for (let f = 0; f < small[0]; f++) for (let g = 0; g < large[0]; g++)
    for (let y = 0; y < small[1]; y++) for (let x = 0; x < small[2]; x++)
      for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) {
        const row = y * stride - padding + i, column = x * stride - padding + j;
        if (row < 0 || column < 0 || row >= large[1] || column >= large[2]) continue;
        const here = (f * small[1] + y) * small[2] + x, there = (g * large[1] + row) * large[2] + column;
        found[back ? there * from + here : here * from + there] = ((f * large[0] + g) * k + i) * k + j;
      }
  return found;
}

// The largest singular value of a matrix and its vectors, by power iteration.
function singular(matrix, n) {
  const m = matrix.length / n, right = Float64Array.from({ length: n }, (_, i) => 1 + 0.1 * i);
  let left, norm;
  for (let turn = 0, moved = 1; moved > 1e-14 && turn < 100000; turn++) {
    left = new Float64Array(m);
    const next = new Float64Array(n);
    matrix.forEach((w, i) => { left[Math.floor(i / n)] += w * right[i % n]; });
    matrix.forEach((w, i) => { next[i % n] += w * left[Math.floor(i / n)]; });
    norm = Math.sqrt(left.reduce((sum, v) => sum + v * v, 0));
    const length = Math.sqrt(next.reduce((sum, v) => sum + v * v, 0));
    moved = 0;
    right.forEach((v, i) => { moved = Math.max(moved, Math.abs(next[i] / length - v)); right[i] = next[i] / length; });
  }
  return { norm, left: left.map((v) => v / norm), right };
}

function run({ config, arrays: encoded }) {
  const arrays = Object.fromEntries(Object.entries(encoded).map(([name, value]) => [name, decode(value)]));
  const param = (c, part) => arrays[`param/${c.name}.${part}`].v;
  const { leak, v_th: vTh } = config.neuron, T = config.n_steps, B = arrays["input/x"].shape[0];
  const classes = config.n_classes, spikes = config.input === "spikes", out = {};
  const pop = [{ name: "input", shape: config.input_shape }, ...config.populations].map((p) => ({ ...p }));
  const index = Object.fromEntries(pop.map((p, i) => [p.name, i]));
  for (const p of pop) {
    p.n = size(p.shape);
    p.channel = (i) => Math.floor((i % p.n) / (p.n / p.shape[0]));
    for (const state of ["u", "s", "a", "m", "g", "beta"]) p[state] = new Float64Array(B * p.n);
    p.train = new Float64Array(B * T * p.n);
  }
  const emit = (name, shape, v, dtype = config.dtype) => { out[name] = encode(dtype, shape, v); };
  const emitState = (stage, p, v, dtype) => emit(`${stage}/${p.name}`, [B, ...p.shape], v, dtype);
  const conn = config.connections.map((c) => {
    const source = index[c.source], target = index[c.target];
    return { ...c, source, target, tie: tie(c, pop[source].shape, pop[target].shape) };
  });
  const matrix = (c, w) => Float64Array.from(c.tie, (at) => (at < 0 ? 0 : w[at]));
  const kept = (c) => (arrays[`input/keep/${c.name}`] || { v: new Float64Array(B * pop[c.target].n).fill(1) }).v;
  const scale = (c, k) => (c.batch_norm ? param(c, "bn_weight")[k] / c.deviation[k] : 1);

  function average(p) { // (RATE)
    const weights = Float64Array.from({ length: T }, (_, t) => leak ** (T - 1 - t));
    const total = weights.reduce((sum, w) => sum + w, 0);
    for (let k = 0; k < B; k++) for (let t = 0; t < T; t++) for (let j = 0; j < p.n; j++)
      p.a[k * p.n + j] += (weights[t] / total) * p.train[(k * T + t) * p.n + j];
  }

  function raw(c, s) { // z = W s + b
    const { n } = pop[c.source], to = pop[c.target], z = new Float64Array(B * to.n);
    for (let i = 0; i < z.length; i++) {
      const sample = Math.floor(i / to.n) * n, row = (i % to.n) * n;
      let sum = c.bias ? param(c, "bias")[to.channel(i)] : 0;
      for (let j = 0; j < n; j++) sum += c.W[row + j] * s[sample + j];
      z[i] = sum;
    }
    return z;
  }

  function moments(c, z) { // of each channel
    const p = pop[c.target], count = (B * p.n) / p.shape[0];
    const mean = new Float64Array(p.shape[0]), variance = new Float64Array(p.shape[0]);
    z.forEach((v, i) => { mean[p.channel(i)] += v / count; });
    z.forEach((v, i) => { variance[p.channel(i)] += (v - mean[p.channel(i)]) ** 2 / count; });
    return [mean, variance];
  }

  function send(c, s, into) { // adds keep (BN)(W s + b)
    const p = pop[c.target], keep = kept(c);
    raw(c, s).forEach((z, i) => {
      const k = p.channel(i);
      into[i] += keep[i] * (c.batch_norm ? scale(c, k) * (z - c.mean[k]) + param(c, "bn_bias")[k] : z);
    });
    return into;
  }

  pop[0].train.forEach((_, i, train) => {
    const { n } = pop[0];
    train[i] = arrays["input/x"].v[spikes ? i : Math.floor(i / (n * T)) * n + (i % n)];
  });
  if (spikes) average(pop[0]);
  else pop[0].a.set(arrays["input/x"].v);
  emit("x_mean", [B, ...pop[0].shape], pop[0].a);

  for (const c of conn) { // (NORM), and the statistics of (BN)
    const { shape, v } = arrays[`param/${c.name}.weight`];
    let w = v;
    if (c.restriction) {
      c.singular = singular(matrix(c, v), pop[c.source].n);
      w = v.map((one) => (param(c, "alpha")[0] / c.singular.norm) * one);
      emit(`weight/${c.name}`, shape, w);
    }
    c.W = matrix(c, w);
    if (c.batch_norm) {
      const running = [param(c, "running_mean"), param(c, "running_var")];
      const [mean, variance] = c.source === 0 ? moments(c, raw(c, pop[0].a)) : running;
      c.mean = mean;
      c.deviation = variance.map((one) => Math.sqrt(one + config.bn.epsilon));
    }
    const p = pop[c.target];
    if (c.source === 0) emitState("drive", p, send(c, pop[0].a, new Float64Array(B * p.n)));
  }

  for (let t = 0; t < T; t++) { // (STEP): forward connections carry s[t+1], feedback s[t]
    const before = pop.map((p) => p.s.slice());
    const { n, train } = pop[0];
    pop[0].s.forEach((_, i, s) => { s[i] = train[(Math.floor(i / n) * T + t) * n + (i % n)]; });
    pop.slice(1).forEach((p, i) => {
      const l = i + 1;
      p.u.forEach((v, at) => { p.u[at] = leak * v; });
      for (const c of conn) if (c.target === l) send(c, c.source < l ? pop[c.source].s : before[c.source], p.u);
      p.u.forEach((v, at) => {
        p.s[at] = v >= vTh ? 1 : 0;
        p.u[at] = v - vTh * p.s[at];
        p.train[(Math.floor(at / p.n) * T + t) * p.n + (at % p.n)] = p.s[at];
      });
    });
  }

  const top = pop[index[config.readout.source]], readout = { name: "readout" }, grad = {};
  const room = (c, part) => (grad[`${c.name}.${part}`] = new Float64Array(param(c, part).length));
  const W = param(readout, "weight"), dW = room(readout, "weight"), db = room(readout, "bias");
  const logits = new Float64Array(B * classes), d = new Float64Array(B * classes);
  pop.slice(1).forEach(average);
  for (let k = 0; k < B; k++) { // (READ), and the mean cross-entropy
    const a = top.a.subarray(k * top.n, (k + 1) * top.n), o = logits.subarray(k * classes, (k + 1) * classes);
    o.forEach((_, i) => { o[i] = a.reduce((sum, v, j) => sum + W[i * top.n + j] * v, param(readout, "bias")[i]); });
    const total = o.reduce((sum, v) => sum + Math.exp(v), 0);
    o.forEach((v, i) => {
      const left = (Math.exp(v) / total - (i === arrays["input/y"].v[k] ? 1 : 0)) / B;
      d[k * classes + i] = left;
      db[i] += left;
      a.forEach((rate, j) => {
        dW[i * top.n + j] += left * rate;
        top.g[k * top.n + j] += left * W[i * top.n + j];
      });
    });
  }
  emit("logits", [B, classes], logits);
  emit("d_logits", [B, classes], d);

  pop.forEach((p, l) => { // (MASK), both ends inside
    const arriving = new Float64Array(B * p.n);
    for (const c of conn) if (c.target === l) send(c, pop[c.source].a, arriving);
    arriving.forEach((v, i) => { p.m[i] = v >= 0 && v <= vTh ? 1 : 0; });
  });

  let solved = false; // (BETA), swept from the last population until nothing moves
  for (let turn = 0; turn < 5000 && !solved; turn++) {
    let moved = 0, largest = 0;
    for (let l = pop.length - 1; l > 0; l--) {
      const p = pop[l], after = p.g.slice();
      for (const c of conn) if (c.source === l) {
        const to = pop[c.target], keep = kept(c);
        to.beta.forEach((beta, i) => {
          const v = (scale(c, to.channel(i)) * keep[i] * to.m[i] * beta) / vTh, sample = Math.floor(i / to.n) * p.n;
          for (let j = 0; j < p.n; j++) after[sample + j] += c.W[(i % to.n) * p.n + j] * v;
        });
      }
      after.forEach((v, i) => {
        moved = Math.max(moved, Math.abs(v - p.beta[i]));
        largest = Math.max(largest, Math.abs(v));
      });
      p.beta = after;
    }
    solved = moved <= 0.1 * config.solver_tol * largest;
  }
  if (!solved) throw new Error("(BETA) is not solved");

  for (const p of pop.slice(1)) {
    emit(`spikes/${p.name}`, [B, T, ...p.shape], p.train, "uint8");
    emitState("u", p, p.u);
    emitState("rates", p, p.a);
    emitState("mask", p, p.m, "uint8");
    emitState("g", p, p.g);
    emitState("beta", p, p.beta);
  }

  for (const c of conn) { // (HEBB), pulled back to the parameters
    const from = pop[c.source], to = pop[c.target], keep = kept(c), w = room(c, "weight");
    let delta = to.beta.map((beta, i) => (keep[i] * to.m[i] * beta) / vTh);
    if (c.batch_norm) {
      const hat = raw(c, from.a).map((z, i) => (z - c.mean[to.channel(i)]) / c.deviation[to.channel(i)]);
      const g = room(c, "bn_weight"), b = room(c, "bn_bias"), count = delta.length / to.shape[0];
      delta.forEach((v, i) => { g[to.channel(i)] += v * hat[i]; b[to.channel(i)] += v; });
      delta = delta.map((v, i) => { // the batch's own statistics move with z, running ones do not
        const k = to.channel(i);
        return scale(c, k) * (c.source === 0 ? v - b[k] / count - (hat[i] * g[k]) / count : v);
      });
    }
    if (c.bias) {
      const b = room(c, "bias");
      delta.forEach((v, i) => { b[to.channel(i)] += v; });
    }
    delta.forEach((v, i) => {
      for (let j = 0; j < from.n; j++) {
        const at = c.tie[(i % to.n) * from.n + j];
        if (at >= 0) w[at] += v * from.a[Math.floor(i / to.n) * from.n + j];
      }
    });
    if (c.restriction) { // through α W̄ / ‖W̄‖
      const { norm, left, right } = c.singular, own = param(c, "weight"), turned = new Float64Array(own.length);
      const along = w.reduce((sum, v, i) => sum + (v * own[i]) / norm, 0);
      c.tie.forEach((at, i) => { if (at >= 0) turned[at] += left[Math.floor(i / from.n)] * right[i % from.n]; });
      w.forEach((v, i) => { w[i] = (param(c, "alpha")[0] / norm) * (v - along * turned[i]); });
      room(c, "alpha")[0] = along;
    }
  }

  const limits = Object.fromEntries(conn.filter((c) => c.restriction).map((c) => [`${c.name}.alpha`, c.restriction.c]));
  for (const [name, g] of Object.entries(grad)) { // one SGD step, α back into [−c, c]
    const { shape, v } = arrays[`param/${name}`], { rate, weight_decay: decay } = config.sgd, limit = limits[name] ?? Infinity;
    emit(`grad/${name}`, shape, g);
    emit(`new/${name}`, shape, v.map((old, i) => Math.max(-limit, Math.min(limit, old - rate * (g[i] + decay * old)))));
  }
  for (const c of conn.filter((one) => one.batch_norm)) { // running statistics one batch on
    moments(c, raw(c, pop[c.source].a)).forEach((found, i) => {
      const part = ["running_mean", "running_var"][i], { momentum } = config.bn;
      emit(`new/${c.name}.${part}`, [found.length], found.map((v, k) => (1 - momentum) * param(c, part)[k] + momentum * v));
    });
  }
  return out;
}

require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const asked = JSON.parse(line);
  process.stdout.write(`${JSON.stringify({ case: asked.case, arrays: run(asked) })}\n`);
});
