/* A step of gradient descent with momentum on rank-r matrices W = U S Vᵀ, the points packed as the
 * rows of U, V and S: what `LowRankManifold.descend` does by the retraction "splitting".
 *
 * Built by descent.py for one type of numbers and one width: -DREAL=double -DVECTORS=V. In `room`
 * rows are V vectors of 32 bytes, filled up with zeros.
 */
#include <float.h>
#include <math.h>

#include "../compiled/tall.h"

static const REAL EPSILON = sizeof(REAL) == 8 ? (REAL)DBL_EPSILON : (REAL)FLT_EPSILON;
static const REAL LEAST = sizeof(REAL) == 8 ? (REAL)DBL_MIN : (REAL)FLT_MIN;

struct job {
    long batch, m, n, rank;
    const REAL *point, *gradient;
    const REAL *buffer; /* the momentum's, tangent at the point, or NULL */
    REAL *end, *moved;  /* the new point; the buffer there, or NULL */
    REAL *room;         /* `rooms` rows */
    double rate, momentum, fresh; /* fresh: 1 − dampening */
    long nesterov, tangent;       /* tangent: so is the gradient, which else is projected */
};

/* out = A B_1 + …, of matrices in `room`, added to what is there or not. */
static void plus(long rows, int rank, row *out, int added, int count, const row *A[], const row *B[])
{
    struct term terms[3];
    for (int t = 0; t < count; t++)
        terms[t] = (struct term){{(const REAL *)A[t], WIDTH, rank}, B[t]};
    times(&(struct tall){added ? (REAL *)out : 0, WIDTH, WIDTH}, 1, terms, count, (REAL *)out,
          WIDTH, 0, rows);
}

/* out = AᵀB. */
static void adjoint(long rows, int rank, const row *A, const row *B, row *out)
{
    for (int k = 0; k < rank; k++)
        for (int v = 0; v < V; v++)
            out[k][v] = (lanes){0};
    cross(rows, rank, (const REAL *)A, WIDTH, (const REAL *)B, WIDTH, out);
}

/* Rows from `from` on, entry by entry times `mask`, less a_ij t; then Σ_i a_ik a_i, k = next, is added
 * to sum: one pass of Householder's. */
static void reflect(long from, long rows, row *A, int j, const row t, const row mask, int next,
                    row sum)
{
    lanes part[ROWS][V];
    for (int l = 0; l < ROWS; l++)
        for (int v = 0; v < V; v++)
            part[l][v] = (lanes){0};
    for (long i = from; i < rows; i += ROWS) {
        int height = rows - i < ROWS ? (int)(rows - i) : ROWS;
        for (int l = 0; l < height; l++) {
            REAL *a = (REAL *)(A + i + l), by = a[j];
            for (int v = 0; v < V; v++)
                A[i + l][v] = A[i + l][v] * mask[v] - by * t[v];
            for (int v = 0; v < V; v++)
                part[l][v] += a[next] * A[i + l][v];
        }
    }
    for (int l = 0; l < ROWS; l++)
        for (int v = 0; v < V; v++)
            sum[v] += part[l][v];
}

/* A = QR by Householder's reflections, Q in the place of A, the signs LAPACK's. With a = A_{≥j,j},
 * β = −sign(a_j)‖a‖ and v = a − βe_j that is I − γvvᵀ, γ = 1/(β(β − a_j)); below the diagonal v
 * stays as it is. Returns 0 where a norm is beyond the numbers' range, or none. */
static int orthonormal(long rows, int rank, row *A, row *R)
{
    row sum = {0}, zero = {0}, ones, t;
    REAL head[WIDTH], gamma[WIDTH], *s = (REAL *)sum, *by = (REAL *)t;

    for (int v = 0; v < V; v++)
        ones[v] = (lanes){0} + 1;
    reflect(0, rows, A, 0, zero, ones, 0, sum);
    for (int j = 0; j < rank; j++) {
        REAL *a = (REAL *)(A + j), norm = (REAL)sqrt(s[j]), beta = a[j] > 0 ? -norm : norm;
        if (!(s[j] > LEAST / EPSILON && s[j] < 1 / LEAST))
            return 0;
        if (j + 1 == rows) /* nothing is below: I, as LAPACK has it */
            beta = a[j];
        head[j] = a[j] - beta;
        gamma[j] = j + 1 == rows ? 0 : 1 / (beta * (beta - a[j]));
        for (int v = 0; v < V; v++)
            t[v] = (lanes){0};
        /* vᵀA: of the sums, with a_j in place of v_j, what the head of v adds. */
        for (int c = j + 1; c < rank; c++)
            by[c] = gamma[j] * (s[c] - beta * a[c]);
        for (int c = j + 1; c < rank; c++)
            a[c] -= head[j] * by[c];
        a[j] = beta;
        for (int v = 0; v < V; v++)
            sum[v] = (lanes){0};
        reflect(j + 1, rows, A, j, t, ones, j + 1 < rank ? j + 1 : j, sum);
    }
    for (int i = 0; i < rank; i++) {
        REAL *a = (REAL *)(A + i), *to = (REAL *)(R + i);
        for (int c = 0; c < WIDTH; c++)
            to[c] = c >= i && c < rank ? a[c] : 0;
        for (int c = i; c < rank; c++)
            a[c] = 0;
    }
    for (int v = 0; v < V; v++)
        sum[v] = (lanes){0};
    for (int j = rank - 1; j >= 0; j--) {
        row mask;
        REAL *a = (REAL *)(A + j), before = j ? a[j - 1] : 0;
        for (int v = 0; v < V; v++) {
            mask[v] = ones[v];
            t[v] = (lanes){0};
        }
        ((REAL *)mask)[j] = 0;
        for (int c = j + 1; c < rank; c++)
            by[c] = gamma[j] * s[c];
        by[j] = gamma[j] * head[j];
        for (int c = j; c < rank; c++)
            a[c] = -head[j] * by[c];
        a[j] += 1;
        for (int v = 0; v < V; v++)
            sum[v] = before * A[j][v];
        reflect(j + 1, rows, A, j, t, mask, j ? j - 1 : 0, sum);
    }
    return 1;
}

static void transposed(int rank, const row *A, row *out, REAL sign)
{
    for (int i = 0; i < rank; i++)
        for (int v = 0; v < V; v++)
            out[i][v] = (lanes){0};
    for (int i = 0; i < rank; i++)
        for (int k = 0; k < rank; k++)
            ((REAL *)(out + i))[k] = sign * ((const REAL *)(A + k))[i];
}

/* a·x + b·y of packed rows, y or NULL. */
static void read(long rows, int rank, const REAL *x, REAL a, const REAL *y, REAL b, row *out)
{
    for (long i = 0; i < rows; i++) {
        REAL *to = (REAL *)(out + i);
        for (int k = 0; k < rank; k++)
            to[k] = a * x[i * rank + k] + (y ? b * y[i * rank + k] : 0);
        for (int k = rank; k < WIDTH; k++)
            to[k] = 0;
    }
}

static void write(long rows, int rank, const row *A, REAL *out)
{
    for (long i = 0; i < rows; i++)
        for (int k = 0; k < rank; k++)
            out[i * rank + k] = ((const REAL *)(A + i))[k];
}

static REAL frobenius(int rank, const row *A)
{
    REAL total = 0;
    for (int i = 0; i < rank; i++)
        for (int k = 0; k < rank; k++)
            total += ((const REAL *)(A + i))[k] * ((const REAL *)(A + i))[k];
    return (REAL)sqrt(total);
}

/* (I − AAᵀ)X in the place of X. */
static void project(long rows, int rank, const row *A, row *X, row *small)
{
    adjoint(rows, rank, A, X, small);
    for (int k = 0; k < rank; k++)
        for (int v = 0; v < V; v++)
            small[k][v] = -small[k][v];
    plus(rows, rank, X, 1, 1, (const row *[]){A}, (const row *[]){small});
}

/* One matrix; 0 where the step loses rank or a number its range: then nothing is to be used. */
static int descend(const struct job *j, const REAL *point, const REAL *gradient,
                   const REAL *buffer, REAL *end, REAL *moved, row *room)
{
    long m = j->m, n = j->n, tall = m + n;
    int r = (int)j->rank;
    REAL momentum = (REAL)j->momentum, fresh = (REAL)j->fresh, rate = (REAL)j->rate;
    row *frame = room, *velocity = frame + tall + r, *ahead = velocity + tall + r;
    row *new = j->nesterov ? ahead + tall + r : ahead, *small = new + tall;
    row *U = frame, *Vv = frame + m, *S = frame + tall, *M = velocity + tall;
    row *T = small, *R = small + r, *Rt = small + 2 * r, *left = small + 3 * r;
    row *right = small + 4 * r, *up = small + 5 * r, *core = small + 6 * r, *turned = small + 7 * r;

    read(tall + r, r, point, 1, 0, 0, frame);
    read(tall + r, r, gradient, buffer ? fresh : 1, buffer, momentum, velocity);
    if (!j->tangent) {
        project(m, r, U, velocity, small);
        project(n, r, Vv, velocity + m, small);
    }
    if (j->nesterov) {
        read(tall + r, r, gradient, 1, 0, 0, ahead);
        if (!j->tangent) {
            project(m, r, U, ahead, small);
            project(n, r, Vv, ahead + m, small);
        }
        for (long i = 0; i < tall + r; i++)
            for (int v = 0; v < V; v++)
                ahead[i][v] += momentum * velocity[i][v];
    } else
        ahead = velocity;

    /* K = UT + (ξV)_⊥ with ξ = −rate·ahead, T = S + M; then L = VRᵀ + (ξᵀU)_⊥ UᵀU'. */
    for (int i = 0; i < r; i++)
        for (int v = 0; v < V; v++)
            T[i][v] = S[i][v] - rate * ahead[tall + i][v];
    REAL scale = frobenius(r, S) + (REAL)fabs(rate) * frobenius(r, ahead + tall);
    for (long i = 0; i < m; i++)
        for (int v = 0; v < V; v++)
            new[i][v] = -rate * ahead[i][v];
    plus(m, r, new, 1, 1, (const row *[]){U}, (const row *[]){T});
    if (!orthonormal(m, r, new, R))
        return 0;
    adjoint(m, r, U, new, left);
    transposed(r, R, Rt, 1);
    for (int i = 0; i < r; i++)
        for (int v = 0; v < V; v++)
            T[i][v] = -rate * left[i][v];
    plus(n, r, new + m, 0, 2, (const row *[]){Vv, ahead + m}, (const row *[]){Rt, T});
    if (!orthonormal(n, r, new + m, R))
        return 0;
    REAL least = INFINITY, most = 0;
    for (int i = 0; i < r; i++) {
        REAL value = (REAL)fabs(((REAL *)(R + i))[i]);
        least = value < least ? value : least;
        most = value > most ? value : most;
    }
    if (!(least > r * EPSILON * (most > scale ? most : scale)))
        return 0;
    transposed(r, R, Rt, 1);
    write(tall, r, new, end);
    write(r, r, Rt, end + tall * r);
    if (!moved)
        return 1;

    /* P_end(ξ) from ξV' = U a + U_p VᵀV' and ξᵀU' = V b + V_p UᵀU'. */
    adjoint(n, r, Vv, new + m, right);
    adjoint(n, r, velocity + m, new + m, T); /* a */
    plus(r, r, T, 1, 1, (const row *[]){M}, (const row *[]){right});
    adjoint(m, r, velocity, new, up);
    adjoint(r, r, left, T, core);
    adjoint(r, r, up, right, R);
    for (int i = 0; i < r; i++)
        for (int v = 0; v < V; v++)
            core[i][v] += R[i][v];
    adjoint(r, r, M, left, R); /* b */
    for (int i = 0; i < r; i++)
        for (int v = 0; v < V; v++)
            R[i][v] += up[i][v];
    write(r, r, core, moved + tall * r);
    transposed(r, core, turned, -1);
    for (int i = 0; i < r; i++)
        for (int v = 0; v < V; v++)
            core[i][v] = -core[i][v];
    plus(m, r, velocity, 0, 3, (const row *[]){U, velocity, new},
         (const row *[]){T, right, core});
    plus(n, r, velocity + m, 0, 3, (const row *[]){Vv, velocity + m, new + m},
         (const row *[]){R, left, turned});
    write(tall, r, velocity, moved);
    return 1;
}

/* Rows of V vectors that `room` must have. */
long rooms(const struct job *j)
{
    long frames = j->m + j->n;
    return (j->nesterov ? 4 : 3) * (frames + j->rank) + 8 * j->rank;
}

/* All matrices of the batch; 0 at the first one whose step needs more care. */
int steps(const struct job *j)
{
    long length = (j->m + j->n + j->rank) * j->rank;
    for (long b = 0; b < j->batch; b++)
        if (!descend(j, j->point + b * length, j->gradient + b * length,
                     j->buffer ? j->buffer + b * length : 0, j->end + b * length,
                     j->moved ? j->moved + b * length : 0, (row *)j->room))
            return 0;
    return 1;
}
