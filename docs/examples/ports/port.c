/* A port of the method to C99, from the equations (docs/equations.md): every stage of every case of a pack.
   cc -O2 -std=c99 -o port port.c -lm
   ide-ref conformance run --form words -- ./port
   Every connection is a matrix whose entries point into its weights (`tie`), so that one code serves dense layers,
   convolutions and transposed convolutions, forward and back. States are (B, n), neurons as (channel, row, column). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define EACH(i, n) for (int i = 0; i < (n); i++)
enum { MOST = 128, LONG = 128 };
typedef struct { /* an array that is given, or a population and its states */
    char name[LONG]; int ndim, dim[8], n; double *v, *u, *s, *before, *a, *train, *m, *g, *beta;
} Array;
typedef struct {
    char name[LONG], kind[LONG], norm[LONG]; int source, target, kernel, stride, padding, more, bias, bn, *tie;
    double c, *W, *mean, *deviation;
} Connection;
static Array given[MOST], pop[MOST]; /* of populations the first is the input */
static Connection conn[MOST];
static int n_taken, n_given, n_pop, n_conn, B, T, classes;
static double leak, v_th, epsilon, momentum, rate, decay, tol;
static void *taken[65536];
static void fail(const char *what) { fprintf(stderr, "%s\n", what); exit(1); }
static void *take(size_t n) { /* zeros, until the case ends */
    void *p = calloc(n + 1, sizeof(double));
    if (!p || n_taken == 65536) fail("no memory");
    return taken[n_taken++] = p;
}
static void word(char *into) { if (scanf("%127s", into) != 1) fail("the input ends within a case"); }
static int integer(void) { char text[LONG]; word(text); return atoi(text); }
static double number(void) { char text[LONG]; word(text); return strtod(text, NULL); }
static Array *array(const char *kind, const char *name, const char *part) {
    char wanted[3 * LONG]; sprintf(wanted, "%s/%s%s%s", kind, name, *part ? "." : "", part);
    EACH(i, n_given) if (!strcmp(given[i].name, wanted)) return &given[i];
    return NULL;
}
static double *param(const Connection *c, const char *part) {
    return array("param", c->name, part)->v;
}
static int population(const char *name) {
    EACH(i, n_pop) if (!strcmp(pop[i].name, name)) return i;
    return fail("an unknown population"), 0;
}
static void emit(const char *stage, const char *name, const char *part, int ndim, const int *dim, const double *v) {
    int size = 1; printf(" %s%s%s%s%s %d", stage, *name ? "/" : "", name, *part ? "." : "", part, ndim);
    for (int i = 0; i < ndim; size *= dim[i++]) printf(" %d", dim[i]);
    EACH(i, size) printf(" %.17g", v[i]);
}
static void emit_state(const char *stage, const Array *p, int steps, const double *v) { /* (B, T or not, ...) */
    int dim[8] = {B, steps}, n = steps ? 2 : 1; EACH(i, p->ndim) dim[n++] = p->dim[i];
    emit(stage, p == pop ? "" : p->name, "", n, dim, v);
}
static int channel(const Array *p, int j) { return j / (p->n / p->dim[0]); }
static void tie(Connection *c) { /* which weight stands where in the matrix, -1 for none */
    const Array *in = &pop[c->source], *out = &pop[c->target];
    int k = c->kernel, back = !strcmp(c->kind, "conv_transpose"); c->tie = take((size_t)out->n * in->n);
    EACH(i, out->n * in->n) c->tie[i] = strcmp(c->kind, "dense") ? -1 : i;
    if (!strcmp(c->kind, "dense")) return;
    const Array *small = back ? in : out, *large = back ? out : in; /* a transposed convolution in reverse */
    EACH(f, small->dim[0]) EACH(g, large->dim[0]) EACH(y, small->dim[1]) EACH(x, small->dim[2])
            EACH(i, k) EACH(j, k) {
                int row = y * c->stride - c->padding + i, column = x * c->stride - c->padding + j;
                if (row < 0 || column < 0 || row >= large->dim[1] || column >= large->dim[2]) continue;
                int at = (f * small->dim[1] + y) * small->dim[2] + x;
                int from = (g * large->dim[1] + row) * large->dim[2] + column;
                c->tie[back ? from * in->n + at : at * in->n + from] = ((f * large->dim[0] + g) * k + i) * k + j;
            }
}
static double singular(const Connection *c, const double *w, double *left, double *right) { /* by power iteration */
    int m = pop[c->target].n, n = pop[c->source].n; double norm = 0, moved = 1, *next = take(n);
    EACH(i, n) right[i] = 1 + 0.1 * i;
    for (int turn = 0; moved > 1e-14 && turn < 100000; turn++) {
        double length = moved = norm = 0;
        memset(left, 0, sizeof(double) * m); memset(next, 0, sizeof(double) * n);
        EACH(i, m * n) if (c->tie[i] >= 0) left[i / n] += w[c->tie[i]] * right[i % n];
        EACH(i, m * n) if (c->tie[i] >= 0) next[i % n] += w[c->tie[i]] * left[i / n];
        EACH(k, m) norm += left[k] * left[k];
        EACH(i, n) length += next[i] * next[i];
        EACH(i, n) { moved = fmax(moved, fabs(next[i] / sqrt(length) - right[i])); right[i] = next[i] / sqrt(length); }
    }
    EACH(k, m) left[k] /= sqrt(norm);
    return sqrt(norm);
}
static double *raw(const Connection *c, const double *s) { /* z = W s + b */
    const Array *in = &pop[c->source], *out = &pop[c->target];
    double *z = take((size_t)B * out->n), *b = c->bias ? param(c, "bias") : NULL;
    EACH(k, B) EACH(o, out->n) {
        double sum = b ? b[channel(out, o)] : 0; EACH(i, in->n) sum += c->W[o * in->n + i] * s[k * in->n + i];
        z[k * out->n + o] = sum;
    }
    return z;
}
static void moments(const Connection *c, const double *z, double *mean, double *variance) { /* of each channel */
    const Array *p = &pop[c->target]; double count = (double)B * p->n / p->dim[0];
    EACH(i, B * p->n) mean[channel(p, i % p->n)] += z[i] / count;
    EACH(i, B * p->n) { int k = channel(p, i % p->n); variance[k] += pow(z[i] - mean[k], 2) / count; }
}
static double kept(const Connection *c, int i) {
    Array *keep = array("input/keep", c->name, ""); return keep ? keep->v[i] : 1;
}
static double slope(const Connection *c, int k) { return c->bn ? param(c, "bn_weight")[k] / c->deviation[k] : 1; }
static void send(const Connection *c, const double *s, double *into) { /* adds keep (BN)(W s + b) */
    const Array *p = &pop[c->target]; double *z = raw(c, s);
    EACH(i, B * p->n) {
        int k = channel(p, i % p->n);
        double v = c->bn ? slope(c, k) * (z[i] - c->mean[k]) + param(c, "bn_bias")[k] : z[i];
        into[i] += kept(c, i) * v;
    }
}
static void prepare(Connection *c) { /* (NORM), and the statistics of (BN) */
    Array *weight = array("param", c->name, "weight"); int m = pop[c->target].n, n = pop[c->source].n;
    double scale = 1, *w = take(weight->n);
    if (strcmp(c->norm, "none")) scale = param(c, "alpha")[0] / singular(c, weight->v, take(m), take(n));
    EACH(i, weight->n) w[i] = scale * weight->v[i];
    if (strcmp(c->norm, "none")) emit("weight", c->name, "", weight->ndim, weight->dim, w);
    c->W = take((size_t)m * n);
    EACH(i, m * n) c->W[i] = c->tie[i] < 0 ? 0 : w[c->tie[i]];
    if (!c->bn) return;
    double *variance = take(m); c->mean = take(m); c->deviation = take(m);
    if (c->source == 0) moments(c, raw(c, pop[0].a), c->mean, variance);
    else { c->mean = param(c, "running_mean"); variance = param(c, "running_var"); }
    EACH(k, pop[c->target].dim[0]) c->deviation[k] = sqrt(variance[k] + epsilon);
}
static void average(Array *p) { /* (RATE) */
    double total = 0; EACH(t, T) total += pow(leak, T - 1 - t);
    EACH(k, B) EACH(t, T) EACH(j, p->n)
        p->a[k * p->n + j] += pow(leak, T - 1 - t) / total * p->train[(k * T + t) * p->n + j];
}
static void simulate(void) { /* (STEP) */
    EACH(t, T) {
        EACH(l, n_pop) memcpy(pop[l].before, pop[l].s, sizeof(double) * B * pop[l].n);
        int n = pop[0].n;
        EACH(i, B * n) pop[0].s[i] = pop[0].train[(i / n * T + t) * n + i % n];
        for (int l = 1; l < n_pop; l++) {
            Array *p = &pop[l]; EACH(i, B * p->n) p->u[i] *= leak;
            EACH(c, n_conn) /* forward connections carry s[t+1], feedback s[t] */
                if (conn[c].target == l)
                    send(&conn[c], conn[c].source < l ? pop[conn[c].source].s : pop[conn[c].source].before, p->u);
            EACH(i, B * p->n) {
                p->s[i] = p->u[i] >= v_th; p->u[i] -= v_th * p->s[i];
                p->train[(i / p->n * T + t) * p->n + i % p->n] = p->s[i];
            }
        }
    }
    for (int l = 1; l < n_pop; l++) average(&pop[l]);
}
static void solve(void) { /* (BETA), swept from the last population until nothing moves */
    for (int turn = 0; turn < 5000; turn++) { double moved = 0, largest = 0;
        for (int l = n_pop - 1; l > 0; l--) {
            Array *p = &pop[l]; double *after = take((size_t)B * p->n);
            memcpy(after, p->g, sizeof(double) * B * p->n);
            EACH(c, n_conn) if (conn[c].source == l) {
                Array *to = &pop[conn[c].target];
                EACH(i, B * to->n) {
                    double v = kept(&conn[c], i) * to->m[i] * to->beta[i] / v_th;
                    v *= slope(&conn[c], channel(to, i % to->n));
                    EACH(j, p->n) after[i / to->n * p->n + j] += conn[c].W[i % to->n * p->n + j] * v;
                }
            }
            EACH(i, B * p->n) {
                moved = fmax(moved, fabs(after[i] - p->beta[i])); largest = fmax(largest, fabs(after[i]));
            }
            memcpy(p->beta, after, sizeof(double) * B * p->n); free(taken[--n_taken]);
        }
        if (moved <= 0.1 * tol * largest) return;
    }
    fail("(BETA) is not solved");
}
static double *gradient(Connection *c, const char *part) { /* room for it, beside the parameter of this name */
    Array *found = array("param", c->name, part), *made = &given[n_given++];
    if (n_given == MOST) fail("too many arrays");
    *made = *found; sprintf(made->name, "grad/%s.%s", c->name, part);
    return made->v = take(found->n);
}
static void hebbian(Connection *c) { /* (HEBB), pulled back to the parameters */
    Array *in = &pop[c->source], *out = &pop[c->target];
    int n = B * out->n, size = array("param", c->name, "weight")->n;
    double *delta = take(n), *hat = take(n), *along = take(out->n), *mean = take(out->n), *w = gradient(c, "weight");
    EACH(i, n) delta[i] = kept(c, i) * out->m[i] * out->beta[i] / v_th;
    if (c->bn) {
        double *z = raw(c, in->a), *g = gradient(c, "bn_weight"), *b = gradient(c, "bn_bias");
        double count = (double)n / out->dim[0]; EACH(i, n) {
            int k = channel(out, i % out->n); hat[i] = (z[i] - c->mean[k]) / c->deviation[k];
            g[k] += delta[i] * hat[i]; b[k] += delta[i];
        }
        EACH(i, n) { /* the batch's own statistics move with z, running ones do not */
            int k = channel(out, i % out->n);
            if (c->source == 0) { mean[k] = b[k] / count; along[k] = g[k] / count; }
            delta[i] = slope(c, k) * (delta[i] - mean[k] - hat[i] * along[k]);
        }
    }
    double *b = c->bias ? gradient(c, "bias") : NULL;
    EACH(i, n) {
        if (b) b[channel(out, i % out->n)] += delta[i];
        EACH(j, in->n) {
            int at = c->tie[i % out->n * in->n + j]; if (at >= 0) w[at] += delta[i] * in->a[i / out->n * in->n + j];
        }
    }
    if (!strcmp(c->norm, "none")) return;
    double *left = take(out->n), *right = take(in->n), *raw_weight = param(c, "weight"), dot = 0;
    double norm = singular(c, raw_weight, left, right), *turned = take(size);
    EACH(i, size) dot += w[i] * raw_weight[i] / norm;
    EACH(i, out->n * in->n) if (c->tie[i] >= 0) turned[c->tie[i]] += left[i / in->n] * right[i % in->n];
    EACH(i, size) w[i] = param(c, "alpha")[0] / norm * (w[i] - dot * turned[i]);
    gradient(c, "alpha")[0] = dot;
}
static void update(void) { /* one SGD step, alpha back into [-c, c], running statistics one batch on */
    for (int i = 0, n = n_given; i < n; i++) {
        Array *old = &given[i], *grad = strncmp(old->name, "param/", 6) ? NULL : array("grad", old->name + 6, "");
        double limit = HUGE_VAL; if (!grad) continue;
        EACH(c, n_conn) if (array("param", conn[c].name, "alpha") == old) limit = conn[c].c;
        emit("grad", old->name + 6, "", old->ndim, old->dim, grad->v);
        EACH(j, old->n) grad->v[j] = fmax(-limit, fmin(limit, old->v[j] - rate * (grad->v[j] + decay * old->v[j])));
        emit("new", old->name + 6, "", old->ndim, old->dim, grad->v);
    }
    for (Connection *c = conn; c < conn + n_conn; c++) if (c->bn) {
        int k = pop[c->target].dim[0]; double *mean = take(pop[c->target].n), *variance = take(pop[c->target].n);
        moments(c, raw(c, pop[c->source].a), mean, variance);
        EACH(i, k) mean[i] += (1 / momentum - 1) * param(c, "running_mean")[i], mean[i] *= momentum;
        EACH(i, k) variance[i] += (1 / momentum - 1) * param(c, "running_var")[i], variance[i] *= momentum;
        emit("new", c->name, "running_mean", 1, &k, mean); emit("new", c->name, "running_var", 1, &k, variance);
    }
}
static void read_array(Array *a) { /* its name, axes and sizes */
    word(a->name); a->ndim = integer(); a->n = 1; EACH(i, a->ndim) a->n *= a->dim[i] = integer();
}
static Array *read_case(void) { /* the population read out */
    char text[LONG], source[LONG];
    word(text); /* the dtype: doubles serve both */
    word(text); int spikes = !strcmp(text, "spikes");
    T = integer(); classes = integer(); leak = number(); v_th = number(); epsilon = number(); momentum = number();
    rate = number(); decay = number(); tol = number(); word(source); word(text); n_pop = integer();
    for (Array *p = pop; p < pop + n_pop; p++) { read_array(p); }
    word(text); n_conn = integer();
    for (Connection *c = conn; c < conn + n_conn; c++) {
        word(c->name); word(text); c->source = population(text); word(text); c->target = population(text);
        word(c->kind); c->kernel = integer(); c->stride = integer(); c->padding = integer(); c->more = integer();
        c->bias = integer(); c->bn = integer(); word(c->norm); c->c = number(); tie(c);
    }
    word(text); n_given = integer();
    for (Array *a = given; a < given + n_given; a++) {
        read_array(a); a->v = take(a->n); EACH(i, a->n) a->v[i] = number();
    }
    word(text); if (strcmp(text, "end")) fail("the case does not close with 'end'");
    Array *x = array("input", "x", ""); B = x->dim[0]; for (Array *p = pop; p < pop + n_pop; p++) {
        size_t n = (size_t)B * p->n;
        p->u = take(n); p->s = take(n); p->before = take(n); p->a = take(n); p->m = take(n); p->g = take(n);
        p->beta = take(n); p->train = take(n * T);
    }
    for (int i = 0, n = pop[0].n; i < B * T * n; i++) pop[0].train[i] = x->v[spikes ? i : i / (n * T) * n + i % n];
    if (spikes) average(&pop[0]); else memcpy(pop[0].a, x->v, sizeof(double) * x->n);
    return &pop[population(source)];
}
static void run(Array *top) {
    Connection readout = {.name = "readout"};
    double *W = param(&readout, "weight"), *b = param(&readout, "bias"), *y = array("input", "y", "")->v;
    double *logits = take(B * classes), *d = take(B * classes), *p;
    int shape[2] = {B, classes}; emit_state("x_mean", &pop[0], 0, pop[0].a);
    EACH(c, n_conn) prepare(&conn[c]);
    for (Connection *c = conn; c < conn + n_conn; c++) if (c->source == 0) {
        send(c, pop[0].a, p = take(B * pop[c->target].n)); emit_state("drive", &pop[c->target], 0, p);
    }
    simulate(); double *dW = gradient(&readout, "weight"), *db = gradient(&readout, "bias");
    EACH(k, B) {
        double total = 0, *o = logits + k * classes;
        EACH(i, classes) {
            o[i] = b[i]; EACH(j, top->n) o[i] += W[i * top->n + j] * top->a[k * top->n + j];
            total += exp(o[i]);
        }
        EACH(i, classes) {
            double v = d[k * classes + i] = (exp(o[i]) / total - (i == (int)y[k])) / B; db[i] += v;
            EACH(j, top->n) {
                dW[i * top->n + j] += v * top->a[k * top->n + j]; top->g[k * top->n + j] += v * W[i * top->n + j];
            }
        }
    }
    emit("logits", "", "", 2, shape, logits); emit("d_logits", "", "", 2, shape, d);
    for (int l = 1; l < n_pop; l++) { /* (MASK), both ends inside */
        p = take(B * pop[l].n);
        EACH(c, n_conn) if (conn[c].target == l) send(&conn[c], pop[conn[c].source].a, p);
        EACH(i, B * pop[l].n) pop[l].m[i] = p[i] >= 0 && p[i] <= v_th;
    }
    solve();
    for (Array *q = pop + 1; q < pop + n_pop; q++) {
        emit_state("spikes", q, T, q->train); emit_state("u", q, 0, q->u); emit_state("rates", q, 0, q->a);
        emit_state("mask", q, 0, q->m); emit_state("g", q, 0, q->g); emit_state("beta", q, 0, q->beta);
    }
    EACH(c, n_conn) hebbian(&conn[c]);
    update();
}
int main(void) {
    char text[LONG];
    while (scanf("%127s", text) == 1) {
        word(text); printf("case %s", text); run(read_case()); puts(" end"); fflush(stdout);
        while (n_taken) free(taken[--n_taken]);
    }
    return 0;
}
