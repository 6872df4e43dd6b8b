/* AᵀB and βC + α Σ_t A_t T_t for tall matrices as torch has them; built by tall.py.
 *
 * Behind the last row of a matrix there may be nothing that can be read, so that rows from which
 * one vector reaches there are copied.
 */
#include "../compiled/tall.h"

enum { TILE = 64, LAST = V == 1 ? LANES : 1 };

struct pair {
    struct tall A, B;
    REAL *out; /* of each chunk of rows AᵀB */
};

struct small {
    struct tall A;
    const REAL *T;
    long down, along; /* the strides of T */
};

/* Rows begin to end of A, to be read as whole vectors. */
static void copied(const struct tall *A, long begin, long end, row *out)
{
    for (long i = begin; i < end; i++)
        for (long k = 0; k < WIDTH; k++)
            ((REAL *)out[i - begin])[k] = k < A->columns ? A->at[i * A->stride + k] : 0;
}

/* AᵀB of rows begin to end, all pairs at once, so that what is in several is fetched once. */
static void chunk(const struct pair *pairs, long count, long rows, long begin, long end, long c,
                  row *sums)
{
    const long last = rows - LAST > begin ? rows - LAST : begin, whole = end < last ? end : last;
    row *sum = sums;
    for (long p = 0; p < count; sum += pairs[p++].A.columns)
        for (long k = 0; k < pairs[p].A.columns; k++)
            for (int v = 0; v < V; v++)
                sum[k][v] = (lanes){0};
    for (long from = begin; from < whole; from += TILE) {
        const long height = whole - from < TILE ? whole - from : TILE;
        sum = sums;
        for (long p = 0; p < count; sum += pairs[p++].A.columns) {
            const struct tall *A = &pairs[p].A, *B = &pairs[p].B;
            cross(height, (int)A->columns, A->at + from * A->stride, A->stride,
                  B->at + from * B->stride, B->stride, sum);
        }
    }
    sum = sums;
    for (long p = 0; p < count; sum += pairs[p++].A.columns) {
        const struct tall *A = &pairs[p].A, *B = &pairs[p].B;
        REAL *out = pairs[p].out + c * A->columns * B->columns;
        if (whole < end) {
            row rest[LAST];
            copied(B, whole, end, rest);
            cross(end - whole, (int)A->columns, A->at + whole * A->stride, A->stride,
                  (REAL *)rest, WIDTH, sum);
        }
        for (long k = 0; k < A->columns; k++)
            for (long l = 0; l < B->columns; l++)
                out[k * B->columns + l] = ((const REAL *)sum[k])[l];
    }
}

/* The chunks first to last of `rows`, each of `length`; A has `columns` in all pairs together. */
void crosses(const struct pair *pairs, long count, long columns, long rows, long length, long first,
             long last)
{
    row sums[columns];
    for (long c = first; c < last; c++) {
        const long begin = c * length, end = begin + length < rows ? begin + length : rows;
        chunk(pairs, count, rows, begin, end, c, sums);
    }
}

/* Rows begin to end, of `rows`; the A_t have `inner` columns together. */
void sums(const struct tall *C, double beta, double alpha, const struct small *given, long count,
          long inner, REAL *out, long columns, long rows, long begin, long end)
{
    row small[inner];
    struct term terms[count];
    const long last = C->at && rows - LAST > begin ? rows - LAST : C->at ? begin : end;
    const long whole = end < last ? end : last;

    for (long t = 0, k = 0; t < count; t++) {
        terms[t] = (struct term){given[t].A, small + k};
        for (long i = 0; i < given[t].A.columns; i++, k++)
            for (long l = 0; l < WIDTH; l++)
                ((REAL *)small[k])[l] =
                    l < columns ? (REAL)alpha * given[t].T[i * given[t].down + l * given[t].along]
                                : 0;
    }
    times(C, (REAL)beta, terms, count, out, columns, begin, whole);
    if (whole == end)
        return;
    row rest[LAST];
    copied(C, whole, end, rest);
    for (long i = whole; i < end; i++)
        few_rows(i, 1, (REAL *)rest[i - whole], 0, (REAL)beta, terms, count, out + i * columns,
                 columns);
}
