/* Gram matrices of the rows of B that stand at the places of each row, inverted and applied.
 *
 * Built by kernels.py for one type of numbers and one width: -DREAL=double -DVECTORS=V. The rows of
 * B are V vectors of 32 bytes, filled up with zeros; so are the `rank` rows of each matrix.
 */
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 32 / sizeof(REAL), V = VECTORS };
typedef REAL lanes __attribute__((vector_size(32), may_alias));

struct grams_job {
    long rows, columns, blocks, rank;
    long first, count;      /* the rows that are asked for, some of all */
    const int64_t *bounds;  /* of the chunks: rows bounds[c] to bounds[c + 1] */
    const int64_t *starts;  /* of the places of row i in block b: starts[b·rows + i], … */
    const int32_t *index;   /* the column of each place */
    const int32_t *place;   /* where its weight stands; NULL: in this order */
    const REAL *B;
    const REAL *weight;     /* NULL: all are 1 */
    REAL *out;              /* (batch, count, rank, V·LANES) */
    long weight_stride;     /* from matrix to matrix of the batch: 0 or the number of places */
};

/* out += Σ w b bᵀ over some places: rows q·LANES and on, from the vector that holds the diagonal. */
INLINE void band(const struct grams_job *j, const lanes *B, const REAL *weight, long begin, long end,
                 lanes *out, int first, const int q)
{
    lanes sum[LANES][V];
    for (int k = 0; k < LANES; k++)
        for (int v = q; v < V; v++)
            if (first || q * LANES + k >= j->rank)
                sum[k][v] = (lanes){0};
            else
                sum[k][v] = out[(q * LANES + k) * V + v];
    for (long l = begin; l < end; l++) {
        const lanes *b = B + (long)j->index[l] * V;
        const REAL *each = (const REAL *)(b + q);
        REAL w = weight ? weight[j->place ? j->place[l] : l] : 1;
        lanes other[V];
        for (int v = q; v < V; v++)
            other[v] = w * b[v];
        for (int k = 0; k < LANES; k++)
            for (int v = q; v < V; v++)
                sum[k][v] += each[k] * other[v];
    }
    for (int k = 0; k < LANES && q * LANES + k < j->rank; k++)
        for (int v = q; v < V; v++)
            out[(q * LANES + k) * V + v] = sum[k][v];
}

INLINE void row(const struct grams_job *j, const lanes *B, const REAL *weight, long begin, long end,
                lanes *out, int first)
{
#pragma GCC unroll 8
    for (int q = 0; q < V; q++)
        band(j, B, weight, begin, end, out, first, q);
}

/* Σ w b bᵀ over the places of each row; below the diagonal's vector nothing is written. */
void grams(const struct grams_job *j, long first, long last, long begin, long stop)
{
    for (long matrix = first; matrix < last; matrix++)
        for (long block = 0; block < j->blocks; block++)
            for (long i = j->bounds[begin]; i < j->bounds[stop]; i++) {
                const int64_t *start = j->starts + block * j->rows + i;
                row(j, (const lanes *)j->B + matrix * j->columns * V,
                    j->weight ? j->weight + matrix * j->weight_stride : 0, start[0], start[1],
                    (lanes *)j->out + (matrix * j->count + i - j->first) * j->rank * V, !block);
            }
}

/* Each symmetric positive definite matrix, of which what grams writes is known, plus shift·1, by
 * its inverse: Gauss's and Jordan's steps, which need no exchange of rows there. */
void invert(REAL *all, long rank, REAL shift, long begin, long stop)
{
    for (long i = begin; i < stop; i++) {
        REAL *A = all + i * rank * V * LANES;
        for (long k = 0; k < rank; k++) {
            for (long l = 0; l < k; l++)
                A[k * V * LANES + l] = A[l * V * LANES + k];
            A[k * V * LANES + k] += shift;
        }
        for (long k = 0; k < rank; k++) {
            lanes *pivot = (lanes *)A + k * V, scaled[V], others[V];
            REAL scale = 1 / A[k * V * LANES + k];
            /* No number is written alone: a vector that is then read would wait for it. */
            for (int v = 0; v < V; v++) {
                for (int n = 0; n < LANES; n++)
                    others[v][n] = v * LANES + n != k;
                scaled[v] = scale * (pivot[v] * others[v] + (1 - others[v]));
            }
            for (long l = 0; l < rank; l++) {
                lanes *other = (lanes *)A + l * V;
                REAL factor = A[l * V * LANES + k];
                for (int v = 0; v < V; v++)
                    other[v] = other[v] * others[v] - factor * scaled[v];
            }
            for (int v = 0; v < V; v++)
                pivot[v] = scaled[v];
        }
    }
}

/* x ↦ xA, of `rank` numbers and rows of vectors. */
INLINE void row_times(const REAL *x, const lanes *A, long rank, lanes *out)
{
    for (int v = 0; v < V; v++)
        out[v] = (lanes){0};
    for (long k = 0; k < rank; k++)
        for (int v = 0; v < V; v++)
            out[v] += x[k] * A[k * V + v];
}

/* out_i = X_i Q A_i Qᵀ for the matrices A of `rows` rows, of each of a batch; X, Q and out with rows
 * of `rank` numbers. */
void times(const REAL *X, const REAL *all, const REAL *Q, REAL *out, long rank, long rows, long first,
           long last, long begin, long stop)
{
    lanes turn[V * LANES][V], back[V * LANES][V];

    for (long matrix = first; matrix < last; matrix++) {
        for (long k = 0; k < rank; k++)
            for (int v = 0; v < V; v++)
                for (int n = 0; n < LANES; n++) {
                    long l = v * LANES + n;
                    turn[k][v][n] = l < rank ? Q[(matrix * rank + k) * rank + l] : 0;
                    back[k][v][n] = l < rank ? Q[(matrix * rank + l) * rank + k] : 0;
                }
        for (long i = matrix * rows + begin; i < matrix * rows + stop; i++) {
            lanes turned[V], x[V];
            row_times(X + i * rank, turn[0], rank, turned);
            row_times((const REAL *)turned, (const lanes *)all + i * rank * V, rank, x);
            row_times((const REAL *)x, back[0], rank, turned);
            for (long k = 0; k < rank; k++)
                out[i * rank + k] = ((const REAL *)turned)[k];
        }
    }
}
