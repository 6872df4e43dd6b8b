/* Products with tall matrices that are row by row in memory: AᵀB, and βC + Σ_t A_t T_t.
 *
 * For one type of numbers and one width: -DREAL=double -DVECTORS=V. A row of up to V vectors of 32
 * bytes is read as V whole ones: what follows it in memory must be there, and reaches nothing that
 * is kept.
 */
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 32 / sizeof(REAL), V = VECTORS, WIDTH = V * LANES, ROWS = V <= 4 ? 4 : 2 };
typedef REAL lanes __attribute__((vector_size(32)));
typedef REAL loose __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));
typedef lanes row[V];

struct tall {
    const REAL *at; /* the first row, or NULL */
    long stride, columns;
};

struct term {
    struct tall A;
    const row *T;
};

INLINE lanes load(const REAL *from)
{
    return *(const loose *)from;
}

INLINE void few_columns(long rows, int wide, const REAL *a, long down, const REAL *b, long along,
                        row *out)
{
    lanes sum[ROWS][V];
    for (int l = 0; l < wide; l++)
        for (int v = 0; v < V; v++)
            sum[l][v] = out[l][v];
    for (long i = 0; i < rows; i++, a += down, b += along)
        for (int l = 0; l < wide; l++)
            for (int v = 0; v < V; v++)
                sum[l][v] += a[l] * load(b + v * LANES);
    for (int l = 0; l < wide; l++)
        for (int v = 0; v < V; v++)
            out[l][v] = sum[l][v];
}

/* AᵀB, from `rows` rows that begin at a and b, is added to out. */
static void cross(long rows, int columns, const REAL *a, long down, const REAL *b, long along,
                  row *out)
{
    int k = 0;
    for (; k + ROWS <= columns; k += ROWS)
        few_columns(rows, ROWS, a + k, down, b, along, out + k);
    for (; k + 2 <= columns; k += 2)
        few_columns(rows, 2, a + k, down, b, along, out + k);
    if (k < columns)
        few_columns(rows, 1, a + k, down, b, along, out + k);
}

/* `height` rows, from c and from row i of the A_t on; c may be NULL. */
INLINE void few_rows(long i, int height, const REAL *c, long stride, REAL beta,
                     const struct term *terms, long count, REAL *out, long columns)
{
    lanes sum[ROWS][V];
    for (int l = 0; l < height; l++)
        for (int v = 0; v < V; v++)
            sum[l][v] = c ? beta * load(c + l * stride + v * LANES) : (lanes){0};
    for (long t = 0; t < count; t++) {
        const long down = terms[t].A.stride;
        const REAL *a = terms[t].A.at + i * down;
        for (int k = 0; k < terms[t].A.columns; k++)
            for (int l = 0; l < height; l++)
                for (int v = 0; v < V; v++)
                    sum[l][v] += a[l * down + k] * terms[t].T[k][v];
    }
    for (int l = 0; l < height; l++, out += columns) {
        for (int v = 0; v < V - 1; v++)
            *(loose *)(out + v * LANES) = sum[l][v];
        for (int k = 0; k < columns - (V - 1) * LANES; k++)
            out[(V - 1) * LANES + k] = sum[l][V - 1][k];
    }
}

/* Rows begin to end of βC + Σ_t A_t T_t, to where `out` has its row 0; out may be C or one of the
 * A_t whose rows are as long as its own. */
static void times(const struct tall *C, REAL beta, const struct term *terms, long count, REAL *out,
                  long columns, long begin, long end)
{
    const REAL *c = C->at ? C->at + begin * C->stride : 0;
    long i = begin, step = c ? C->stride : 0;
    for (; i + ROWS <= end; i += ROWS, c += ROWS * step)
        few_rows(i, ROWS, c, step, beta, terms, count, out + i * columns, columns);
    for (; i < end; i++, c += step)
        few_rows(i, 1, c, step, beta, terms, count, out + i * columns, columns);
}
