/* The order of numbers 0 ≤ key < range, equal ones in the order they had: counting instead of
 * comparing. `start` (range + 1, zeros) becomes where the numbers of each key begin; `before` is
 * the order to start from, NULL for 0, 1, …
 */
#include <stdint.h>

void order_by(long count, long range, const int64_t *key, const int64_t *before, int64_t *start,
              int64_t *after)
{
    for (long l = 0; l < count; l++)
        start[key[l] + 1]++;
    for (long k = 0; k < range; k++)
        start[k + 1] += start[k];
    for (long l = 0; l < count; l++) {
        int64_t from = before ? before[l] : l;
        after[start[key[from]]++] = from;
    }
    for (long k = range; k > 0; k--) /* each start has moved to its end */
        start[k] = start[k - 1];
    start[0] = 0;
}
