/* The loop of _exact.c for one kind of processor. Included once for each, with these defined:
 *
 *   NAMED(name)   the name of a function of this clone
 *   TARGET        the attribute that lets the compiler use this processor's instructions
 *   LANES         float32 numbers in one vector register
 *   PARTS         vectors of columns multiplied together: STRIP * PARTS sums must fit into the registers
 *   STRIP         rows multiplied together, so that each number of the right side that is loaded serves them all
 *
 * GROUP, the columns whose rounding is looked at together, is a multiple of LANES * PARTS.
 */

typedef float NAMED(Lanes) __attribute__((vector_size(LANES * sizeof(float))));
typedef float NAMED(FourSingles) __attribute__((vector_size(4 * sizeof(float))));
typedef double NAMED(FourDoubles) __attribute__((vector_size(4 * sizeof(double))));

/* One element in float64; whether its error leaves no choice. bfloat16's subnormal numbers, which have fewer bits, are
 * left to the last step. */
TARGET static int NAMED(by_float64)(const Block *b, Py_ssize_t row, Py_ssize_t column, uint16_t *out)
{
    const uint64_t half = UINT64_C(1) << 44; /* of the last bit that bfloat16 keeps, in float64's bits */
    const float *left = b->left + row * b->rank, *right = b->right + column * b->rank;
    const double weight = widened(b->weight[row * b->columns + column]);
    NAMED(FourDoubles) sums = {0};
    double sum = weight, top, bottom;
    Py_ssize_t k = 0;
    for (; k + 4 <= b->rank; k += 4) { /* four sums at a time: one would wait for each addition before */
        NAMED(FourSingles) x, y;
        NAMED(FourDoubles) s;
        memcpy(&x, left + k, sizeof x), memcpy(&y, right + k, sizeof y), memcpy(&s, b->scale + k, sizeof s);
        sums += __builtin_convertvector(x, NAMED(FourDoubles)) * __builtin_convertvector(y, NAMED(FourDoubles)) * s;
    }
    for (; k < b->rank; k++)
        sum += (double)left[k] * right[k] * b->scale[k];
    sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    const double error = (fabs(weight) + b->row_bound[row]) * ((double)(b->rank + 6) * 0x1p-53 * 1.0625);
    uint64_t above, below;
    top = sum + error, bottom = sum - error;
    memcpy(&above, &top, 8), memcpy(&below, &bottom, 8);
    above = (above + half) & ~(2 * half - 1), below = (below + half) & ~(2 * half - 1);
    memcpy(&top, &above, 8);
    *out = (uint16_t)(as_bits((float)top) >> 16);
    return above == below && fabs(sum) > 0x1p-125;
}

/* found <- scaled_left @ turned_right of GROUP columns and `rows` rows (at most STRIP: where there are fewer, the last one
 * is multiplied again in place of those that are missing), in sums of at most CHAIN terms each. */
TARGET static inline void NAMED(multiply)(const Block *b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start,
                                          float found[][GROUP])
{
    const float *left[STRIP];
    for (int i = 0; i < STRIP; i++)
        left[i] = b->scaled_left + (row + (i < rows ? i : rows - 1)) * b->rank;
    for (int at = 0; at < GROUP; at += LANES * PARTS)
        for (Py_ssize_t first = 0; first < b->rank || first == 0; first += CHAIN) {
            const Py_ssize_t last = b->rank - first < CHAIN ? b->rank : first + CHAIN;
            NAMED(Lanes) sums[STRIP][PARTS] = {0};
            for (Py_ssize_t k = first; k < last; k++)
                for (int part = 0; part < PARTS; part++) {
                    NAMED(Lanes) loaded;
                    memcpy(&loaded, b->turned_right + k * b->columns + start + at + part * LANES, sizeof loaded);
                    for (int i = 0; i < STRIP; i++)
                        sums[i][part] += loaded * left[i][k];
                }
            for (int i = 0; i < STRIP; i++)
                for (int part = 0; part < PARTS; part++) {
                    float *to = &found[i][at + part * LANES];
                    NAMED(Lanes) before = {0};
                    if (first)
                        memcpy(&before, to, sizeof before);
                    before += sums[i][part];
                    memcpy(to, &before, sizeof before);
                }
        }
}

/* The same at the right edge. */
TARGET static void NAMED(multiply_edge)(const Block *b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start,
                                        Py_ssize_t count, float found[][GROUP])
{
    for (Py_ssize_t i = 0; i < rows; i++)
        for (Py_ssize_t j = 0; j < count; j++) {
            float sum = 0;
            for (Py_ssize_t first = 0; first < b->rank; first += CHAIN) {
                const Py_ssize_t last = b->rank - first < CHAIN ? b->rank : first + CHAIN;
                float part = 0;
                for (Py_ssize_t k = first; k < last; k++)
                    part += b->scaled_left[(row + i) * b->rank + k] * b->turned_right[k * b->columns + start + j];
                sum += part;
            }
            found[i][j] = sum;
        }
}

/* One row of a group: the largest |v| as bits. */
TARGET static inline uint32_t NAMED(settle_row)(Block *b, Py_ssize_t row, Py_ssize_t start, Py_ssize_t count,
                                                const float *delta)
{
    const uint16_t *weight = b->weight + row * b->columns + start;
    const float *column_share = b->column_share + start;
    uint16_t *out = b->out + row * b->columns + start;
    const float factor = b->row_error[row];
    /* Where nothing is added to a row, its zeros (pruned weights, padding) would all be within this of another number. */
    const float least = b->row_bound[row] > 0 ? b->least : 0;
    uint16_t differ[GROUP], any = 0;
    uint32_t largest = 0;
    for (Py_ssize_t j = 0; j < count; j++) {
        const float value = widened(weight[j]) + delta[j];
        const uint32_t size = as_bits(value) & 0x7FFFFFFFu;
        const float error = least + factor * column_share[j] + as_float(size) * b->slope;
        const uint16_t top = rounded(value + error);
        largest = size > largest ? size : largest;
        differ[j] = top ^ rounded(value - error);
        any |= differ[j];
        out[j] = top;
    }
    if (!any)
        return largest;
    for (Py_ssize_t j = count; j < GROUP; j++)
        differ[j] = 0;
    for (Py_ssize_t first = 0; first < GROUP; first += 4) {
        uint64_t four; /* elements, looked at together: a few of a group are open */
        memcpy(&four, differ + first, sizeof four);
        for (Py_ssize_t j = first; four && j < first + 4; j++) {
            if (!differ[j])
                continue;
            b->recomputed++;
            if (!NAMED(by_float64)(b, row, start + j, &out[j]))
                b->rest[b->open++] = (uint32_t)(row * b->columns + start + j);
        }
    }
    return largest;
}

TARGET static void NAMED(settle_block)(Block *b)
{
    float found[STRIP][GROUP];
    for (Py_ssize_t tile = 0; tile < b->columns; tile += TILE)
        for (Py_ssize_t row = 0; row < b->rows; row += STRIP)
            for (Py_ssize_t start = tile; start < b->columns && start < tile + TILE; start += GROUP) {
                const Py_ssize_t count = b->columns - start < GROUP ? b->columns - start : GROUP;
                const Py_ssize_t rows = b->rows - row < STRIP ? b->rows - row : STRIP;
                if (!b->delta && count == GROUP)
                    NAMED(multiply)(b, row, rows, start, found);
                else if (!b->delta)
                    NAMED(multiply_edge)(b, row, rows, start, count, found);
                for (Py_ssize_t i = 0; i < rows; i++) {
                    const float *delta = b->delta ? b->delta + (row + i) * b->columns + start : found[i];
                    const uint32_t size = count == GROUP ? NAMED(settle_row)(b, row + i, start, GROUP, delta)
                                                         : NAMED(settle_row)(b, row + i, start, count, delta);
                    b->largest = size > b->largest ? size : b->largest;
                }
            }
}

#undef NAMED
#undef TARGET
#undef LANES
#undef PARTS
#undef STRIP
