/*
 * The mathematics of the equilibrium explorer, in double precision: one population of n neurons with feedback and a
 * static input. Functions bear the labels of docs/equations.md; tests/test_explorer.py holds each against
 * ide_ref.equations, ide_ref.theory and ide_ref.continuous.
 *
 * A network is { n, nIn, W, F, b, x, leak, vTh }: W (n × n) and F (n × nIn) row by row in a Float64Array, the row being
 * the receiving neuron. A classic script: it defines globalThis.ide, and module.exports where there is such a thing.
 */
(function (root) {
  "use strict";

  // ---- Networks ----------------------------------------------------------------------------------------------------

  /** Uniform numbers in [0, 1), multiples of 2^-32: Marsaglia's xorshift with shifts 13, 17, 5. */
  function generator(seed) {
    let state = (Math.imul(seed, 0x9e3779b9) + 1) >>> 0 || 1;
    return function () {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) / 4294967296;
    };
  }

  /**
   * What chance decides: W̄ with `hears` senders for each neuron (all, itself too, from n on; else others only), F̄ and
   * x. Weights are uniform on [-1, 1), x on [0, 1).
   */
  function draw(seed, n, hears, nIn) {
    const random = generator(seed);
    const weight = () => 2 * random() - 1;
    const W = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      const senders = Array.from({ length: n }, (_, j) => j);
      let count = n;
      if (hears < n) {
        senders.splice(i, 1);
        count = hears;
      }
      for (let k = 0; k < count; k++) {
        if (hears < n) {
          const other = k + Math.floor(random() * (senders.length - k));
          [senders[k], senders[other]] = [senders[other], senders[k]];
        }
        W[i * n + senders[k]] = weight();
      }
    }
    const F = Float64Array.from({ length: n * nIn }, weight);
    const x = Float64Array.from({ length: nIn }, random);
    return { n, nIn, W, F, x, norm: spectralNorm(W, n) };
  }

  /** (NORM) W = α W̄/‖W̄‖₂, here with α = γ V_th, so that ‖W‖₂/V_th = γ; F = contrast F̄; every b is the mean drive. */
  function network(drawn, { gamma, leak, vTh, drive, contrast }) {
    const alpha = drawn.norm > 0 ? (gamma * vTh) / drawn.norm : 0;
    return {
      n: drawn.n,
      nIn: drawn.nIn,
      W: drawn.W.map((w) => alpha * w),
      F: drawn.F.map((w) => contrast * w),
      b: new Float64Array(drawn.n).fill(drive),
      x: drawn.x,
      leak,
      vTh,
    };
  }

  // ---- Linear algebra ----------------------------------------------------------------------------------------------

  const norm = (v) => Math.sqrt(v.reduce((sum, value) => sum + value * value, 0));
  const minus = (v, w) => v.map((value, i) => value - w[i]);

  /** W v for a matrix with v.length columns. */
  function apply(W, v) {
    const columns = v.length;
    const out = new Float64Array(W.length / columns);
    for (let i = 0; i < out.length; i++) {
      let sum = 0;
      for (let j = 0; j < columns; j++) sum += W[i * columns + j] * v[j];
      out[i] = sum;
    }
    return out;
  }

  /** Wᵀ v for a square matrix. */
  function applyTransposed(W, v) {
    const n = v.length;
    const out = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      if (v[i] !== 0) for (let j = 0; j < n; j++) out[j] += W[i * n + j] * v[i];
    }
    return out;
  }

  /** The solution of A z = y by elimination with row exchanges; overwrites its own copies only. */
  function solve(A, y) {
    const n = y.length;
    const rows = Array.from({ length: n }, (_, i) => A.slice(i * n, (i + 1) * n));
    const z = Float64Array.from(y);
    for (let k = 0; k < n; k++) {
      let pivot = k;
      for (let i = k + 1; i < n; i++) if (Math.abs(rows[i][k]) > Math.abs(rows[pivot][k])) pivot = i;
      [rows[k], rows[pivot]] = [rows[pivot], rows[k]];
      [z[k], z[pivot]] = [z[pivot], z[k]];
      const top = rows[k];
      for (let i = k + 1; i < n; i++) {
        const row = rows[i];
        const factor = row[k] / top[k];
        if (factor === 0) continue;
        for (let j = k + 1; j < n; j++) row[j] -= factor * top[j];
        z[i] -= factor * z[k];
      }
    }
    for (let i = n - 1; i >= 0; i--) {
      for (let j = i + 1; j < n; j++) z[i] -= rows[i][j] * z[j];
      z[i] /= rows[i][i];
    }
    return z;
  }

  /**
   * ‖W‖₂, the root of the largest eigenvalue of WᵀW: Lanczos' method from a random vector, every new vector made
   * orthogonal to all before, until they span all that the start can reach. It needs no gap between singular values.
   */
  function spectralNorm(W, n) {
    const random = generator(1);
    let q = Float64Array.from({ length: n }, () => random() + 0.5);
    q = q.map((value) => value / norm(q));
    const basis = [];
    const diagonal = [];
    const beside = [];
    while (basis.length < n) {
      basis.push(q);
      const next = applyTransposed(W, apply(W, q));
      diagonal.push(dot(q, next));
      // Twice is enough for orthogonality to rounding.
      for (let pass = 0; pass < 2; pass++) {
        for (const old of basis) {
          const along = dot(old, next);
          for (let i = 0; i < n; i++) next[i] -= along * old[i];
        }
      }
      const length = norm(next);
      if (length <= 1e-15 * n * Math.max(...diagonal)) break;
      beside.push(length);
      q = next.map((value) => value / length);
    }
    return Math.sqrt(largestEigenvalue(diagonal, beside));
  }

  function dot(v, w) {
    let sum = 0;
    for (let i = 0; i < v.length; i++) sum += v[i] * w[i];
    return sum;
  }

  /** Of a symmetric tridiagonal matrix: bisection between two floats, counting eigenvalues above by Sturm's sequence. */
  function largestEigenvalue(diagonal, beside) {
    const anyAbove = (level) => {
      let pivot = 1;
      for (let i = 0; i < diagonal.length; i++) {
        pivot = diagonal[i] - level - (i > 0 ? beside[i - 1] ** 2 / pivot : 0);
        if (pivot >= 0) return true;
      }
      return false;
    };
    let low = Math.max(...diagonal);
    let high = Math.max(...diagonal.map((d, i) => d + (beside[i - 1] || 0) + (beside[i] || 0)));
    for (;;) {
      const middle = low + (high - low) / 2;
      if (middle <= low || middle >= high) return high;
      if (anyAbove(middle)) low = middle;
      else high = middle;
    }
  }

  // ---- Discrete time -----------------------------------------------------------------------------------------------

  /** F x + b. */
  function driveOf(net) {
    return apply(net.F, net.x).map((value, i) => value + net.b[i]);
  }

  /** (STEP) v = λ u[t] + W s[t] + F x[t] + b; s[t+1] = H(v − V_th), H(0) = 1; u[t+1] = v − V_th s[t+1]; drive is F x + b. */
  function step(net, u, s, drive) {
    const arriving = apply(net.W, s);
    const v = u.map((value, i) => net.leak * value + (drive[i] + arriving[i]));
    const sNext = v.map((value) => (value >= net.vTh ? 1 : 0));
    return { s: sNext, u: v.map((value, i) => value - net.vTh * sNext[i]) };
  }

  /**
   * A network at rest. `advance` goes one step on and says what it did: `t`, `s`, `u`, (RATE) the average `a` and its
   * total weight S_t, `before` and `ratio`, the rates a[t−1] that were sent and S_{t−1}/S_t, `p` of (BALANCE), and
   * `spikes` as [neuron, time].
   *
   * (RATE) S_t = Σ_{i<t} λ^i; a[t] = (1/S_t) Σ_{τ=1..t} λ^{t−τ} s[τ]
   * (BALANCE) V_th a[t+1] = p[t] − u[t+1]/S_{t+1}, p[t] = (S_t/S_{t+1}) W a[t] + F x̄[t] + b
   */
  function discrete(net) {
    const drive = driveOf(net);
    let t = 0;
    let u = new Float64Array(net.n);
    let s = new Float64Array(net.n);
    let a = new Float64Array(net.n);
    let weight = new Float64Array(net.n);
    let total = 0;
    return {
      advance() {
        ({ u, s } = step(net, u, s, drive));
        t += 1;
        const before = a;
        const ratio = total / (net.leak * total + 1);
        total = net.leak * total + 1;
        weight = weight.map((value, i) => net.leak * value + s[i]);
        a = weight.map((value) => value / total);
        const sent = apply(net.W, before);
        const p = sent.map((value, i) => ratio * value + drive[i]);
        const spikes = [];
        s.forEach((fired, i) => fired && spikes.push([i, t]));
        return { t, s, u, a, total, before, ratio, sent, p, spikes };
      },
    };
  }

  // ---- Continuous time ---------------------------------------------------------------------------------------------

  /** τ_m of the leak that keeps λ of a potential over one unit of time; infinite for IF. */
  const timeConstant = (leak) => (leak === 1 ? Infinity : -1 / Math.log(leak));

  /** K(t) = ∫_0^t κ: t for IF, τ_m (1 − exp(−t/τ_m)) for LIF. */
  const kernelTotal = (t, tau) => (t <= 0 ? 0 : tau === Infinity ? t : -tau * Math.expm1(-t / tau));

  /**
   * A network at rest in continuous time, followed from event to event without a grid.
   *
   * (IF-C) du/dt = W s(t−Δ) + F x(t) + b − V_th s(t)
   * (LIF-C) du/dt = −u/τ_m + W s(t−Δ) + F x(t) + b − V_th s(t)
   *
   * At one instant delayed spikes arrive first; then, as long as a neuron stands at threshold, the one with the lowest
   * index fires, and without delay its spike arrives before the next is asked. `advance` goes on to the next whole t and
   * returns what `discrete` does, with a(t−Δ) for `before` and K for S; null where `budget` events did not suffice, and
   * the next call goes on from there.
   */
  function continuous(net, delay) {
    const { n, W, vTh } = net;
    const tau = timeConstant(net.leak);
    const drive = driveOf(net);
    const u = new Float64Array(n);
    const fired = new Float64Array(n); // Σ κ(t − t_spike), all spikes of a neuron,
    const arrived = new Float64Array(n); // and those that have reached their receivers
    const flight = []; // spikes [neuron, time], in the order in which they were fired
    let landed = 0;
    let now = 0;
    let reached = 0;
    let spikes = [];

    function move(to) {
      const elapsed = to - now;
      now = to;
      if (elapsed === 0) return;
      const kept = Math.exp(-elapsed / tau);
      const brought = kernelTotal(elapsed, tau);
      for (let i = 0; i < n; i++) {
        u[i] += (drive[i] - u[i] / tau) * brought;
        fired[i] *= kept;
        arrived[i] *= kept;
      }
    }

    /** Which neuron fires next, and when: from u the potential closes V_th − u at V_th with speed d − V_th/τ_m. */
    function nextCrossing() {
      let first = -1;
      let least = Infinity;
      for (let i = 0; i < n; i++) {
        if (u[i] >= vTh) return [i, now];
        const slope = drive[i] - vTh / tau;
        const y = slope > 0 ? (vTh - u[i]) / slope : Infinity;
        if (y < least) [first, least] = [i, y];
      }
      return [first, now + (tau === Infinity ? least : tau * Math.log1p(least / tau))];
    }

    function deliver(j) {
      arrived[j] += 1;
      for (let i = 0; i < n; i++) u[i] += W[i * n + j];
    }

    function fire(i, time) {
      const late = time > now;
      move(time);
      u[i] = late ? 0 : u[i] - vTh;
      fired[i] += 1;
      spikes.push([i, time]);
      if (delay === 0) deliver(i);
      else flight.push([i, time]);
    }

    return {
      tau,
      advance(budget = Infinity) {
        const to = reached + 1;
        for (let events = 0; ; events++) {
          if (events >= budget) return null;
          const [i, fires] = nextCrossing();
          const lands = landed < flight.length ? flight[landed][1] + delay : Infinity;
          if (lands <= to && lands <= fires) {
            move(lands);
            deliver(flight[landed++][0]);
          } else if (fires <= to) fire(i, fires);
          else break;
        }
        move(to);
        reached = to;
        const total = kernelTotal(to, tau);
        const totalBefore = kernelTotal(to - delay, tau);
        const a = fired.map((value) => value / total);
        const before = arrived.map((value) => (totalBefore > 0 ? value / totalBefore : 0));
        const ratio = totalBefore / total;
        const sent = apply(W, before);
        const p = sent.map((value, k) => ratio * value + drive[k]);
        const found = { t: to, u: Float64Array.from(u), a, total, before, ratio, sent, p, spikes };
        spikes = [];
        return found;
      },
    };
  }

  // ---- The equilibrium ---------------------------------------------------------------------------------------------

  /** σ: clip(·, 0, 1) in discrete time, ReLU, with no ceiling, in continuous time. */
  const sigma = (z, ceiling) => Math.min(Math.max(z, 0), ceiling);

  /** One sweep of (FP), σ((W a + drive)/V_th), and its p = W a + drive. */
  function sweep(net, a, drive, ceiling) {
    const p = apply(net.W, a).map((value, i) => value + drive[i]);
    return { p, a: p.map((value) => sigma(value / net.vTh, ceiling)) };
  }

  /**
   * (FP) a* = σ((W a* + F x* + b)/V_th); σ = clip(·, 0, 1) in discrete time, ReLU in continuous time
   *
   * By Newton's method, which is exact once every neuron is on the right piece of σ, with a sweep wherever that
   * comes no nearer. Returns `a`, its `p`, and the `residual` ‖f(a) − a‖ that rounding leaves.
   */
  function equilibrium(net, ceiling) {
    const drive = driveOf(net);
    let a = new Float64Array(net.n);
    let image = sweep(net, a, drive, ceiling);
    let residual = norm(minus(image.a, a));
    for (let k = 0; k < 5000 && residual > 0; k++) {
      let next = newton(net, image.p, drive, ceiling);
      let nextImage = sweep(net, next, drive, ceiling);
      let nextResidual = norm(minus(nextImage.a, next));
      if (!(nextResidual < 0.5 * residual)) {
        // Rounding alone is left when neither comes nearer.
        if (residual < 1e-13 * (1 + norm(a))) break;
        next = image.a;
        nextImage = sweep(net, next, drive, ceiling);
        nextResidual = norm(minus(nextImage.a, next));
      }
      [a, image, residual] = [next, nextImage, nextResidual];
    }
    return { a, p: image.p, residual };
  }

  /** The rates that solve (FP) if every neuron stays on the piece of σ where p has it. */
  function newton(net, p, drive, ceiling) {
    const { n, W, vTh } = net;
    const a = p.map((value) => (value >= vTh * ceiling ? ceiling : 0));
    const active = [];
    p.forEach((value, i) => value > 0 && value < vTh * ceiling && active.push(i));
    const given = apply(W, a);
    const A = new Float64Array(active.length ** 2);
    active.forEach((i, row) => {
      active.forEach((j, column) => (A[row * active.length + column] = (row === column ? vTh : 0) - W[i * n + j]));
    });
    const solved = solve(A, active.map((i) => drive[i] + given[i]));
    active.forEach((i, row) => (a[i] = solved[row]));
    return a;
  }

  // ---- How far from it ---------------------------------------------------------------------------------------------

  /**
   * Follows a run: `add` takes what `advance` returned and gives `error` = ‖a[t] − a*‖ with its bounds.
   *
   * (ERR) ‖a[t+1] − a*‖ ≤ γ ‖a[t] − a*‖ + ((1 − S_t/S_{t+1}) ‖W a[t]‖ + ‖F(x̄[t] − x*)‖ + ‖u⁺[t+1]‖/S_{t+1})/V_th
   * is `oneStep`, where x̄ = x* for a static input, and `iterated` its sum from ‖a*‖ at t = 0. In continuous time t−Δ takes
   * the place of t, K that of S; without delay the error stands on both sides, and there is no sum.
   * (SPLIT) V_th a[t+1] = clip(p[t], 0, V_th) − u⁺[t+1]/S_{t+1} defines u⁺, `c` is the largest |u⁺| so far, and
   * (FLOOR) (1−λ) c √n/(V_th (1−γ)) is `floor`, 0 for IF, with 1/τ_m for 1 − λ in continuous time.
   */
  function distance(net, gamma, star, ceiling, delay = null) {
    const { n, vTh, leak } = net;
    const forgets = delay === null ? 1 - leak : 1 / timeConstant(leak);
    let c = 0;
    let iterated = norm(star);
    return {
      add({ a, total, before, ratio, sent, p, u }) {
        const uPlus = p.map((value, i) => total * (vTh * sigma(value / vTh, ceiling) - vTh * a[i]));
        c = uPlus.reduce((most, value) => Math.max(most, Math.abs(value)), c);
        const r = ((1 - ratio) * norm(sent) + norm(uPlus) / total) / vTh;
        iterated = gamma * iterated + r;
        return {
          error: norm(minus(a, star)),
          oneStep: delay === 0 ? r / (1 - gamma) : gamma * norm(minus(before, star)) + r,
          iterated: delay === null ? iterated : null,
          floor: (forgets * c * Math.sqrt(n)) / (vTh * (1 - gamma)),
          c,
        };
      },
    };
  }

  // ---- The gradient ------------------------------------------------------------------------------------------------

  /** (MASK) m = 1 where 0 ≤ p/V_th ≤ 1, else 0; M = diag(m) */
  const mask = (net, p, ceiling) => p.map((value) => (value >= 0 && value <= net.vTh * ceiling ? 1 : 0));

  /** (1/V_th) Wᵀ M β: what the connections, run backwards, bring each neuron. */
  function backwards(net, m, beta) {
    return applyTransposed(net.W, beta.map((value, i) => (m[i] * value) / net.vTh));
  }

  /** One iteration of (BETA), β^{k+1} = (1/V_th) Wᵀ M β^k + (∂L/∂a*)ᵀ. */
  function betaStep(net, m, beta, g) {
    return backwards(net, m, beta).map((value, i) => value + g[i]);
  }

  /** (BETA) β* = (I − (1/V_th) Wᵀ M)⁻¹ (∂L/∂a*)ᵀ */
  function beta(net, m, g) {
    const { n, W, vTh } = net;
    const system = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) system[i * n + j] = (i === j ? 1 : 0) - (W[j * n + i] * m[j]) / vTh;
    }
    return solve(system, g);
  }

  /** (HEBB) ∇W = (1/V_th) M β* a*ᵀ, ∇F = (1/V_th) M β* x*ᵀ, ∇b = (1/V_th) M β* */
  function hebb(net, m, betaStar, a) {
    const delta = betaStar.map((value, i) => (m[i] * value) / net.vTh);
    const outer = (sent) => {
      const out = new Float64Array(delta.length * sent.length);
      for (let i = 0; i < delta.length; i++) {
        for (let j = 0; j < sent.length; j++) out[i * sent.length + j] = delta[i] * sent[j];
      }
      return out;
    };
    return { W: outer(a), F: outer(net.x), b: delta };
  }

  /** ∂a*_k/∂W_ij by the symmetric difference of two equilibria, h apart from W_ij to either side. */
  function difference(net, k, i, j, ceiling, h = 1e-6) {
    const moved = (by) => {
      const W = Float64Array.from(net.W);
      W[i * net.n + j] += by;
      return equilibrium({ ...net, W }, ceiling).a[k];
    };
    return (moved(h) - moved(-h)) / (2 * h);
  }

  const ide = {
    apply, backwards, beta, betaStep, continuous, difference, discrete, distance, dot, draw, driveOf, equilibrium,
    generator, hebb, kernelTotal, mask, minus, network, norm, solve, spectralNorm, step, sweep, timeConstant,
  };
  root.ide = ide;
  if (typeof module === "object" && module.exports) module.exports = ide;
})(globalThis);
