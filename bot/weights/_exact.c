/* The first two steps of bot/weights/delta.py for bfloat16, in one pass over a block: the same bits as numpy's, since both
 * give the correctly rounded result, and several times as fast. Without a C compiler the package installs without it.
 *
 * v = w + d in float32 lies within e = row_error + |v|·slope of the exact sum; where v-e and v+e round alike, that is the
 * answer. The rest is computed again in float64; what even that leaves open is handed back, for rational arithmetic. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define GROUP 64 /* columns looked at together: one group in a hundred holds an uncertain element */
#define STRIP 4  /* rows multiplied together, so that each number of the right side that is loaded serves them all */
#define TILE 512 /* columns whose right side, at rank 16, stays in the first cache while all rows pass */

typedef struct {
    const uint16_t *weight;   /* rows × columns, bfloat16 */
    const float *delta;       /* rows × columns, or NULL: then it is computed here, as scaled_left @ turned_right */
    const float *scaled_left; /* rows × rank */
    const float *turned_right; /* rank × columns */
    uint16_t *out;            /* rows × columns, bfloat16 */
    uint32_t *rest;           /* rows × columns: flat places of what is still open */
    const float *row_error;   /* rows */
    const float *left;        /* rows × rank */
    const float *right;       /* columns × rank */
    const double *scale;      /* rank */
    const double *row_bound;  /* rows: at least Σ|terms| of any element of the row */
    Py_ssize_t rows, columns, rank;
    float slope;
    uint32_t largest;         /* max |v| as float32's bits, which order like the numbers; NaN above all */
    Py_ssize_t recomputed, open;
} Block;

#define LANES 16 /* one AVX-512 register; the compiler splits it where registers are shorter */
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

static inline float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
static inline float widened(uint16_t bits) { return as_float((uint32_t)bits << 16); }
/* Half away from zero: alike to half-to-even but for ties, and those lie within every error that is not zero. */
static inline uint16_t rounded(float value) { return (uint16_t)((as_bits(value) + 0x8000u) >> 16); }

/* One element in float64; whether its error leaves no choice. bfloat16's subnormal numbers, which have fewer bits, are
 * left to the last step. */
static int by_float64(const Block *b, Py_ssize_t row, Py_ssize_t column, uint16_t *out)
{
    const uint64_t half = UINT64_C(1) << 44; /* of the last bit that bfloat16 keeps, in float64's bits */
    const float *left = b->left + row * b->rank, *right = b->right + column * b->rank;
    const double weight = widened(b->weight[row * b->columns + column]);
    double sum = weight, top, bottom;
    for (Py_ssize_t k = 0; k < b->rank; k++)
        sum += (double)left[k] * right[k] * b->scale[k];
    const double error = (fabs(weight) + b->row_bound[row]) * ((double)(b->rank + 6) * 0x1p-53 * 1.0625);
    uint64_t above, below;
    top = sum + error, bottom = sum - error;
    memcpy(&above, &top, 8), memcpy(&below, &bottom, 8);
    above = (above + half) & ~(2 * half - 1), below = (below + half) & ~(2 * half - 1);
    memcpy(&top, &above, 8);
    *out = (uint16_t)(as_bits((float)top) >> 16);
    return above == below && fabs(sum) > 0x1p-125;
}

/* found ← scaled_left @ turned_right of STRIP rows and GROUP columns. */
static inline void multiply(const Block *b, Py_ssize_t row, Py_ssize_t start, float found[STRIP][GROUP])
{
    Lanes sums[STRIP][GROUP / LANES] = {0};
    for (Py_ssize_t k = 0; k < b->rank; k++) {
        const float *right = b->turned_right + k * b->columns + start;
        for (int part = 0; part < GROUP / LANES; part++) {
            Lanes loaded;
            memcpy(&loaded, right + part * LANES, sizeof loaded);
            for (int i = 0; i < STRIP; i++)
                sums[i][part] += loaded * b->scaled_left[(row + i) * b->rank + k];
        }
    }
    memcpy(found, sums, sizeof sums);
}

/* The same at the right and lower edges. */
static inline void multiply_edge(const Block *b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t count,
                                 float found[STRIP][GROUP])
{
    memset(found, 0, sizeof(float[STRIP][GROUP]));
    for (Py_ssize_t i = 0; i < rows; i++)
        for (Py_ssize_t k = 0; k < b->rank; k++)
            for (Py_ssize_t j = 0; j < count; j++)
                found[i][j] += b->scaled_left[(row + i) * b->rank + k] * b->turned_right[k * b->columns + start + j];
}

/* One row of a group: the largest |v| as bits. */
static inline uint32_t settle_row(Block *b, Py_ssize_t row, Py_ssize_t start, Py_ssize_t count, const float *delta)
{
    const uint16_t *weight = b->weight + row * b->columns + start;
    uint16_t *out = b->out + row * b->columns + start;
    /* Where nothing is added to a row, its zeros (pruned weights, padding) would all be within this of another number. */
    const float least = b->row_bound[row] > 0 ? b->row_error[row] : 0;
    uint16_t differ[GROUP], any = 0;
    uint32_t largest = 0;
    for (Py_ssize_t j = 0; j < count; j++) {
        const float value = widened(weight[j]) + delta[j];
        const uint32_t size = as_bits(value) & 0x7FFFFFFFu;
        const float error = least + as_float(size) * b->slope;
        const uint16_t top = rounded(value + error);
        largest = size > largest ? size : largest;
        differ[j] = top ^ rounded(value - error);
        any |= differ[j];
        out[j] = top;
    }
    for (Py_ssize_t j = 0; any && j < count; j++) {
        if (!differ[j])
            continue;
        b->recomputed++;
        if (!by_float64(b, row, start + j, &out[j]))
            b->rest[b->open++] = (uint32_t)(row * b->columns + start + j);
    }
    return largest;
}

FOR_EACH_PROCESSOR
static void settle_block(Block *b)
{
    float found[STRIP][GROUP];
    for (Py_ssize_t tile = 0; tile < b->columns; tile += TILE)
        for (Py_ssize_t row = 0; row < b->rows; row += STRIP)
            for (Py_ssize_t start = tile; start < b->columns && start < tile + TILE; start += GROUP) {
                const Py_ssize_t count = b->columns - start < GROUP ? b->columns - start : GROUP;
                const Py_ssize_t rows = b->rows - row < STRIP ? b->rows - row : STRIP;
                if (!b->delta && rows == STRIP && count == GROUP)
                    multiply(b, row, start, found);
                else if (!b->delta)
                    multiply_edge(b, row, rows, start, count, found);
                for (Py_ssize_t i = 0; i < rows; i++) {
                    const float *delta = b->delta ? b->delta + (row + i) * b->columns + start : found[i];
                    const uint32_t size = count == GROUP ? settle_row(b, row + i, start, GROUP, delta)
                                                         : settle_row(b, row + i, start, count, delta);
                    b->largest = size > b->largest ? size : b->largest;
                }
            }
}

PyDoc_STRVAR(settle_doc,
"settle(weight, delta, scaled_left, turned_right, out, rest, row_error, left, right, scale, row_bound, slope)\n"
"    -> (largest, recomputed, open)\n\n"
"out <- bfloat16 of weight + delta, correctly rounded, but for the `open` flat places in `rest`; delta: None for\n"
"scaled_left @ turned_right. C-contiguous buffers: weight, out: uint16; delta, row_error (one a row), scaled_left and\n"
"left (rows x rank), turned_right (rank x columns), right (columns x rank): float32; rest: uint32; scale (one a rank),\n"
"row_bound (one a row): float64. `largest`: the largest |weight + delta|; not finite where one is not.");

static PyObject *settle(PyObject *self, PyObject *args)
{
    Py_buffer weight, delta, scaled_left, turned_right, out, rest, row_error, left, right, scale, row_bound;
    Py_buffer *all[] = {&weight, &delta,     &scaled_left, &turned_right, &out,      &rest,
                        &left,   &row_error, &right,       &scale,        &row_bound};
    Block b = {0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*z*y*y*w*w*y*y*y*y*y*f:settle", &weight, &delta, &scaled_left, &turned_right, &out, &rest,
                          &row_error, &left, &right, &scale, &row_bound, &b.slope))
        return NULL;
    b.rows = row_error.len / 4;
    b.rank = scale.len / 8;
    b.columns = b.rows ? weight.len / 2 / b.rows : 0;
    const Py_ssize_t size = b.rows * b.columns, sides[2] = {4 * b.rows * b.rank, 4 * b.columns * b.rank};
    if (weight.len != 2 * size || out.len != 2 * size || (delta.buf && delta.len != 4 * size) || rest.len < 4 * size ||
        row_bound.len != 8 * b.rows || left.len != sides[0] || scaled_left.len != sides[0] || right.len != sides[1] ||
        turned_right.len != sides[1] || (uint64_t)size > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "settle: the buffers' sizes do not fit together");
    } else {
        b.weight = weight.buf, b.delta = delta.buf, b.out = out.buf, b.rest = rest.buf, b.row_error = row_error.buf;
        b.scaled_left = scaled_left.buf, b.turned_right = turned_right.buf;
        b.left = left.buf, b.right = right.buf, b.scale = scale.buf, b.row_bound = row_bound.buf;
        Py_BEGIN_ALLOW_THREADS
        settle_block(&b);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("dnn", (double)as_float(b.largest), b.recomputed, b.open);
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        PyBuffer_Release(all[i]);
    return result;
}

static PyMethodDef methods[] = {{"settle", settle, METH_VARARGS, settle_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_exact", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__exact(void) { return PyModule_Create(&module); }
