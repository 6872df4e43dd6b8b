/* Products of a sparse matrix E, whose places are known, with thin matrices, and its samples.
 *
 * Built by kernels.py for one type of numbers and one width: -DREAL=double -DVECTORS=V. The rows of
 * thin matrices are V vectors of 32 bytes, filled up with zeros. The places are stored row by row,
 * and that once for each block of columns, so that the rows of B that a block needs stay in the
 * cache. Rows are grouped in chunks; sums are kept per chunk: they do not depend on the threads.
 */
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 32 / sizeof(REAL), TILE = 64, V = VECTORS };
typedef REAL lanes __attribute__((vector_size(32)));

struct job {
    long rows, columns, entries, blocks, chunks;
    const int64_t *bounds;  /* of the chunks: rows bounds[c] to bounds[c + 1] */
    const int64_t *starts;  /* of the places of row i in block b: starts[b·rows + i], … */
    const int32_t *index;   /* the column of each place */
    const int32_t *place;   /* where its number stands in `entry`; NULL: in this order */
    const REAL *A, *B;      /* samples are ⟨A_i, B_j⟩; A is NULL where `entry` is given */
    const REAL *Q;          /* the rows of what Eᵀ is multiplied with, or NULL */
    const REAL *value;      /* what is subtracted from the samples, or NULL */
    const REAL *weight;     /* what the differences are multiplied with, or NULL */
    const REAL *second;     /* F, other numbers at the places, for second halves; or NULL */
    REAL *entry;            /* E, read or (unless NULL) written */
    REAL *out;              /* EB, or NULL; with `second` [E·B's first half, F·B's second] */
    REAL *back;             /* to which EᵀQ is added, by one thread, with `second` likewise; or NULL */
    double *sums;           /* per chunk Σ e·d, d the differences, or NULL */
    long value_stride;      /* from matrix to matrix of the batch: 0 or entries */
};

INLINE REAL across(lanes v)
{
    REAL sum[LANES];
    for (int i = 0; i < LANES; i++)
        sum[i] = v[i];
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++)
            sum[i] += sum[i + step];
    return sum[0];
}

/* Numbers `from` to `from + count` of one row, at most TILE: E's, from samples or as given. */
INLINE void row_tile(const struct job *j, const lanes *a, const lanes *B, REAL *entry,
                     const REAL *value, const REAL *second, long from, int count, lanes *out,
                     const lanes *q, lanes *back, double *sum)
{
    const int32_t *index = j->index + from;
    REAL x[TILE], e[TILE];

    if (a) {
        for (int l = 0; l < count; l++) {
            const lanes *b = B + (long)index[l] * V;
            lanes product = a[0] * b[0];
            for (int v = 1; v < V; v++)
                product += a[v] * b[v];
            x[l] = across(product);
        }
        if (value)
            for (int l = 0; l < count; l++)
                x[l] -= value[from + l];
        if (j->weight)
            for (int l = 0; l < count; l++)
                e[l] = x[l] * j->weight[from + l];
        else
            for (int l = 0; l < count; l++)
                e[l] = x[l];
        if (entry)
            for (int l = 0; l < count; l++)
                entry[from + l] = e[l];
        if (sum) {
            double partial[4] = {0};
            int l = 0;
            for (; l + 4 <= count; l += 4)
                for (int i = 0; i < 4; i++)
                    partial[i] += (double)e[l + i] * x[l + i];
            for (; l < count; l++)
                partial[0] += (double)e[l] * x[l];
            *sum += (partial[0] + partial[1]) + (partial[2] + partial[3]);
        }
    } else if (j->place)
        for (int l = 0; l < count; l++)
            e[l] = entry[j->place[from + l]];
    else
        for (int l = 0; l < count; l++)
            e[l] = entry[from + l];
    if (out && second)
        for (int l = 0; l < count; l++) {
            const lanes *b = B + (long)index[l] * V;
            for (int v = 0; v < V; v++)
                out[v] += (v < V / 2 ? e[l] : second[from + l]) * b[v];
        }
    else if (out)
        for (int l = 0; l < count; l++) {
            const lanes *b = B + (long)index[l] * V;
            for (int v = 0; v < V; v++)
                out[v] += e[l] * b[v];
        }
    if (back)
        for (int l = 0; l < count; l++) {
            lanes *to = back + (long)index[l] * V;
            for (int v = 0; v < V; v++)
                to[v] += (second && v >= V / 2 ? second[from + l] : e[l]) * q[v];
        }
}

INLINE void chunk(const struct job *j, long matrix, long block, long c)
{
    const lanes *A = j->A ? (const lanes *)j->A + matrix * j->rows * V : 0;
    const lanes *B = (const lanes *)j->B + matrix * j->columns * V;
    const lanes *Q = j->back ? (const lanes *)j->Q + matrix * j->rows * V : 0;
    lanes *out = j->out ? (lanes *)j->out + matrix * j->rows * V : 0;
    lanes *back = j->back ? (lanes *)j->back + matrix * j->columns * V : 0;
    REAL *entry = j->entry ? j->entry + matrix * j->entries : 0;
    const REAL *value = j->value ? j->value + matrix * j->value_stride : 0;
    const REAL *second = j->second ? j->second + matrix * j->entries : 0;
    double *total = j->sums ? j->sums + matrix * j->chunks + c : 0;

    for (long i = j->bounds[c]; i < j->bounds[c + 1]; i++) {
        const int64_t *start = j->starts + block * j->rows + i;
        lanes a[V], q[V], sum[V];
        for (int v = 0; v < V; v++) {
            if (A)
                a[v] = A[i * V + v];
            if (back)
                q[v] = Q[i * V + v];
            sum[v] = out && block ? out[i * V + v] : (lanes){0};
        }
        for (long l = start[0]; l < start[1]; l += TILE) {
            int count = start[1] - l < TILE ? (int)(start[1] - l) : TILE;
            row_tile(j, A ? a : 0, B, entry, value, second, l, count, out ? sum : 0, q, back,
                     total);
        }
        if (out)
            for (int v = 0; v < V; v++)
                out[i * V + v] = sum[v];
    }
}

/* Matrices first to last of the batch, chunks begin to stop of their rows. */
void products(const struct job *j, long first, long last, long begin, long stop)
{
    for (long matrix = first; matrix < last; matrix++)
        for (long block = 0; block < j->blocks; block++)
            for (long c = begin; c < stop; c++)
                chunk(j, matrix, block, c);
}

/* Σ w(⟨a, b⟩ − value)⟨a', b'⟩ over numbers `from` to `from + count` of one row, at most TILE. */
INLINE double pairing_tile(const struct job *j, const lanes *a, const lanes *B, const REAL *value,
                           long from, int count)
{
    const int32_t *index = j->index + from;
    REAL e[TILE], x[TILE];
    double partial[4] = {0};
    int l = 0;

    for (int l = 0; l < count; l++) {
        const lanes *b = B + (long)index[l] * V;
        lanes fit = a[0] * b[0], along = a[V / 2] * b[V / 2];
        for (int v = 1; v < V / 2; v++) {
            fit += a[v] * b[v];
            along += a[V / 2 + v] * b[V / 2 + v];
        }
        e[l] = across(fit);
        x[l] = across(along);
    }
    for (int l = 0; value && l < count; l++)
        e[l] -= value[from + l];
    for (int l = 0; j->weight && l < count; l++)
        e[l] *= j->weight[from + l];
    for (; l + 4 <= count; l += 4)
        for (int i = 0; i < 4; i++)
            partial[i] += (double)e[l + i] * x[l + i];
    for (; l < count; l++)
        partial[0] += (double)e[l] * x[l];
    return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

/* The same of each chunk, a and a' the halves of the rows of A, b and b' those of B. */
void pairings(const struct job *j, long first, long last, long begin, long stop)
{
    for (long matrix = first; matrix < last; matrix++)
        for (long block = 0; block < j->blocks; block++)
            for (long c = begin; c < stop; c++)
                for (long i = j->bounds[c]; i < j->bounds[c + 1]; i++) {
                    const int64_t *start = j->starts + block * j->rows + i;
                    const lanes *row = (const lanes *)j->A + (matrix * j->rows + i) * V;
                    const lanes *B = (const lanes *)j->B + matrix * j->columns * V;
                    const REAL *value = j->value ? j->value + matrix * j->value_stride : 0;
                    lanes a[V];
                    for (int v = 0; v < V; v++)
                        a[v] = row[v];
                    for (long l = start[0]; l < start[1]; l += TILE)
                        j->sums[matrix * j->chunks + c] += pairing_tile(
                            j, a, B, value, l, start[1] - l < TILE ? (int)(start[1] - l) : TILE);
                }
}
