/* Runge–Kutta steps of the layer flow, BRTW (5), for many tiny networks with one loss.
 *
 * Built by layer_steps.py for one list of widths and one type of numbers: -DDEPTH=N
 * -DWIDTHS=d_0,…,d_N -DWIDEST=max d_j -DREAL=double. LANES networks go through a step together,
 * each in its lane of every vector, so that all their matrices stay in registers and first cache.
 */
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 32 / sizeof(REAL), SIZE = WIDEST * WIDEST };
typedef REAL lanes __attribute__((vector_size(32)));
static const int d[] = {WIDTHS};

/* O = AB with A (m, k) and B (k, n), entries being (i·row + j·column) apart. */
INLINE void product(int m, int k, int n, lanes *restrict O, const lanes *restrict A, int A_row,
                    int A_column, const lanes *restrict B, int B_row, int B_column)
{
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            lanes sum = A[i * A_row] * B[j * B_column];
            for (int l = 1; l < k; l++)
                sum += A[i * A_row + l * A_column] * B[l * B_row + j * B_column];
            O[i * n + j] = sum;
        }
}

/* K_j = −∇_{W_j}L^N(W_1, …, W_N) with ∇L¹(W) = WC − B. */
static __attribute__((noinline)) void velocity(lanes K[][SIZE], lanes W[][SIZE], const REAL *C,
                                               const REAL *B)
{
    lanes P[DEPTH][SIZE]; /* P_j = W_j···W_1 */
    lanes A[2][SIZE];     /* −W_{j+1}ᵀ···W_Nᵀ∇L¹(W), in turns */

    memcpy(P[0], W[0], sizeof P[0]);
#pragma GCC unroll 8
    for (int j = 1; j < DEPTH; j++)
        product(d[j + 1], d[j], d[0], P[j], W[j], d[j], 1, P[j - 1], d[0], 1);
    for (int i = 0; i < d[DEPTH]; i++)
        for (int j = 0; j < d[0]; j++) {
            lanes sum = (lanes){0} + B[i * d[0] + j];
            for (int l = 0; l < d[0]; l++)
                sum -= P[DEPTH - 1][i * d[0] + l] * C[l * d[0] + j];
            A[(DEPTH - 1) % 2][i * d[0] + j] = sum;
        }
#pragma GCC unroll 8
    for (int j = DEPTH - 1; j > 0; j--) {
        const lanes *G = A[j % 2];
        product(d[j + 1], d[0], d[j], K[j], G, d[0], 1, P[j - 1], 1, d[0]);
        product(d[j], d[j + 1], d[0], A[(j - 1) % 2], W[j], 1, d[j], G, d[0], 1);
    }
    memcpy(K[0], A[0], sizeof A[0]);
}

INLINE void copy(void *to, const void *from, long networks)
{
    if (networks >= LANES) /* a size known to the compiler: one instruction instead of a call */
        memcpy(to, from, sizeof(lanes));
    else
        memcpy(to, from, sizeof(REAL) * networks);
}

/* Networks begin to stop of n: end ← y + h Σ_s weights[s] K_s, K_s at y + h nodes[s−1] K_{s−1}.
 *
 * Entry e of layer j of network b is y[j][e·n + b].
 */
void step(const REAL *const *y, REAL *const *end, long n, long begin, long stop, int stages,
          const double *nodes, const double *weights, double h, const REAL *C, const REAL *B)
{
    lanes W[DEPTH][SIZE], Y[DEPTH][SIZE], K[DEPTH][SIZE], sum[DEPTH][SIZE];

    memset(W, 0, sizeof W);
    for (long b = begin; b < stop; b += LANES) {
        for (int j = 0; j < DEPTH; j++)
            for (int e = 0; e < d[j + 1] * d[j]; e++)
                copy(&W[j][e], &y[j][e * n + b], stop - b);
        memcpy(Y, W, sizeof W);
        memcpy(sum, W, sizeof W);
        for (int s = 0; s < stages; s++) {
            velocity(K, Y, C, B);
            for (int j = 0; j < DEPTH; j++)
                for (int e = 0; e < d[j + 1] * d[j]; e++) {
                    sum[j][e] += (REAL)(h * weights[s]) * K[j][e];
                    if (s + 1 < stages)
                        Y[j][e] = W[j][e] + (REAL)(h * nodes[s]) * K[j][e];
                }
        }
        for (int j = 0; j < DEPTH; j++)
            for (int e = 0; e < d[j + 1] * d[j]; e++)
                copy(&end[j][e * n + b], &sum[j][e], stop - b);
    }
}
