/* The loops of _rederive.c for one kind of processor. Included once for each, with these defined:
 *
 *   OF(name)  what a function is called for this kind
 *   FOR       the attribute that lets the compiler use its instructions
 *   WIDTH     float64 numbers in one register
 *   ACROSS    registers of columns whose sums are kept at a time, for each of BAND rows
 *
 * TILE and SUMS are multiples of WIDTH, TILE of WIDTH * ACROSS.
 */

typedef double OF(Doubles) __attribute__((vector_size(WIDTH * 8)));
typedef int64_t OF(Longs) __attribute__((vector_size(WIDTH * 8)));
typedef uint64_t OF(Bits) __attribute__((vector_size(WIDTH * 8)));

/* to <- the numbers as float64, exactly, and zeros up to `room`. */
FOR static void OF(widen)(const uint8_t *from, enum storage as, Py_ssize_t count, Py_ssize_t room, double *to)
{
    if (as == F32) {
        const float *numbers = (const float *)from;
        for (Py_ssize_t j = 0; j < count; j++)
            to[j] = numbers[j];
    } else if (as == BF16) {
        const uint16_t *halves = (const uint16_t *)from;
        for (Py_ssize_t j = 0; j < count; j++) {
            const union { uint32_t bits; float number; } wide = {(uint32_t)halves[j] << 16};
            to[j] = wide.number;
        }
    } else { /* as float64's bits an exponent is 1023 - 15 too small, of subnormal numbers too */
        const uint16_t *halves = (const uint16_t *)from;
        for (Py_ssize_t j = 0; j < count; j++) {
            const uint64_t own = halves[j] & 0x7FFFu;
            const uint64_t beyond = own >= 0x7C00u ? UINT64_C(0x7FF0) << 48 : 0; /* infinity and NaN */
            const union { uint64_t bits; double number; } small = {own << 42};
            union { uint64_t bits; double number; } wide = {0};
            wide.number = small.number * 0x1p1008;
            wide.bits |= beyond | (uint64_t)(halves[j] & 0x8000u) << 48;
            to[j] = wide.number;
        }
    }
    for (Py_ssize_t j = count; j < room; j++)
        to[j] = 0;
}

/* delta <- BAND rows × `width` columns of left · right, from `row` and `start`; the last row again where there are fewer. */
FOR static void OF(multiply)(const Task *task, Py_ssize_t row, Py_ssize_t start, Py_ssize_t width, double delta[][TILE])
{
    const double *left[BAND];
    for (int i = 0; i < BAND; i++)
        left[i] = task->left + (row + i < task->rows ? row + i : task->rows - 1) * task->rank;
    Py_ssize_t at = 0;
    for (; at + WIDTH * ACROSS <= width; at += WIDTH * ACROSS) {
        OF(Doubles) sums[BAND][ACROSS] = {0};
        const double *right = task->right + start + at;
        for (Py_ssize_t k = 0; k < task->rank; k++, right += task->columns)
            for (int part = 0; part < ACROSS; part++) {
                OF(Doubles) loaded;
                memcpy(&loaded, right + part * WIDTH, sizeof loaded);
                for (int i = 0; i < BAND; i++)
                    sums[i][part] += loaded * left[i][k];
            }
        for (int i = 0; i < BAND; i++)
            memcpy(&delta[i][at], sums[i], sizeof sums[i]);
    }
    for (; at < width; at++)
        for (int i = 0; i < BAND; i++) {
            double sum = 0;
            for (Py_ssize_t k = 0; k < task->rank; k++)
                sum += task->right[k * task->columns + start + at] * left[i][k];
            delta[i][at] = sum;
        }
}

FOR static void OF(product)(Task *task)
{
    double delta[BAND][TILE] __attribute__((aligned(64)));
    for (Py_ssize_t start = 0; start < task->columns; start += TILE) {
        const Py_ssize_t width = task->columns - start < TILE ? task->columns - start : TILE;
        for (Py_ssize_t row = 0; row < task->rows; row += BAND) {
            OF(multiply)(task, row, start, width, delta);
            for (int i = 0; i < BAND && row + i < task->rows; i++)
                memcpy(task->out + (row + i) * task->columns + start, delta[i], width * sizeof(double));
        }
    }
}

/* One row of a tile, `room` numbers of each, a multiple of SUMS; what is too much is zero everywhere, which adds nothing. */
FOR static void OF(tell)(Task *task, Py_ssize_t room, const double *weight, const double *stored, const double *delta,
                         OF(Doubles) sums[3][SUMS / WIDTH], OF(Longs) *equal, OF(Longs) *before)
{
    const int dropped = DROPPED[task->stored_as];
    const double normal = NORMAL[task->stored_as], grid = GRID[task->stored_as];
    const uint64_t half = (UINT64_C(1) << (dropped - 1)) - 1, mask = ~((UINT64_C(1) << dropped) - 1);
    for (Py_ssize_t j = 0; j < room; j += SUMS)
        for (int part = 0; part < SUMS / WIDTH; part++) {
            OF(Doubles) w, s, d, value, rounded;
            memcpy(&w, weight + j + part * WIDTH, sizeof w);
            memcpy(&s, stored + j + part * WIDTH, sizeof s);
            memcpy(&d, delta + j + part * WIDTH, sizeof d);
            value = w + d;
            OF(Bits) bits = (OF(Bits))value; /* to nearest, ties to even, at the storage's last bit */
            const OF(Doubles) size = (OF(Doubles))(bits & ~(UINT64_C(1) << 63));
            const OF(Bits) small = (OF(Bits))(size < normal), coarse = (OF(Bits))(value + grid - grid);
            bits = (bits + half + ((bits >> dropped) & 1)) & mask;
            rounded = (OF(Doubles))((coarse & small) | (bits & ~small));
            *equal -= (OF(Longs))(rounded == s);
            *before -= (OF(Longs))(s == w);
            const OF(Doubles) moved = s - w, change = value - w;
            sums[0][part] += moved * change;
            sums[1][part] += change * change;
            sums[2][part] += w * w;
        }
}

FOR static void OF(compare)(Task *task)
{
    double delta[BAND][TILE] __attribute__((aligned(64))) = {{0}};
    double weight[TILE] __attribute__((aligned(64))), stored[TILE] __attribute__((aligned(64)));
    OF(Doubles) sums[3][SUMS / WIDTH] = {{{0}}};
    OF(Longs) equal = {0}, before = {0};
    int64_t padding = 0;
    for (Py_ssize_t start = 0; start < task->columns; start += TILE) {
        const Py_ssize_t width = task->columns - start < TILE ? task->columns - start : TILE;
        const Py_ssize_t room = (width + SUMS - 1) / SUMS * SUMS;
        for (Py_ssize_t row = 0; row < task->rows; row += BAND) {
            if (task->rank)
                OF(multiply)(task, row, start, width, delta);
            for (int i = 0; i < BAND && row + i < task->rows; i++) {
                const Py_ssize_t at = (row + i) * task->columns + start;
                for (Py_ssize_t j = width; j < room; j++)
                    delta[i][j] = 0;
                OF(widen)(task->weight + at * BYTES[task->weight_as], task->weight_as, width, room, weight);
                OF(widen)(task->stored + at * BYTES[task->stored_as], task->stored_as, width, room, stored);
                OF(tell)(task, room, weight, stored, delta[i], sums, &equal, &before);
                padding += room - width;
            }
        }
    }
    for (int lane = 0; lane < WIDTH; lane++)
        task->equal += equal[lane], task->kept_as_before += before[lane];
    task->equal -= padding, task->kept_as_before -= padding;
    memcpy(task->kept, sums[0], sizeof task->kept);
    memcpy(task->power, sums[1], sizeof task->power);
    memcpy(task->size, sums[2], sizeof task->size);
}

#undef OF
#undef FOR
#undef WIDTH
#undef ACROSS
