/* The first two steps of bot/numerics/rounder.py for bfloat16, in one pass over a block: the same bits as numpy's, since both
 * give the correctly rounded result, and several times as fast. Without a C compiler the package installs without it.
 *
 * v = w + d in float32 lies within e = row_error + |v|·slope of the exact sum; where v-e and v+e round alike, that is the
 * answer. The rest is computed again in float64; what even that leaves open is handed back, for rational arithmetic. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define GROUP 64 /* columns looked at together: one group in a hundred holds an uncertain element */
#define TILE 512 /* columns whose right side, at rank 16, stays in the first cache while all rows pass */
#define CHAIN 16 /* terms added up one after the other: the error bound grows with them, not with the rank */

typedef struct {
    const uint16_t *weight;   /* rows × columns, bfloat16 */
    const float *delta;       /* rows × columns, or NULL: then it is computed here, as scaled_left @ turned_right */
    const float *scaled_left; /* rows × rank */
    const float *turned_right; /* rank × columns */
    uint16_t *out;            /* rows × columns, bfloat16 */
    uint32_t *rest;           /* rows × columns: flat places of what is still open */
    const float *row_error;   /* rows: a bound on the error of any element of the row's delta */
    const float *column_share; /* columns: at most this share of it */
    const float *left;        /* rows × rank */
    const float *right;       /* columns × rank */
    const double *scale;      /* rank */
    const double *row_bound;  /* rows: at least Σ|terms| of any element of the row */
    Py_ssize_t rows, columns, rank;
    float least, slope;       /* the error of every element, and per |v| */
    uint32_t largest;         /* max |v| as float32's bits, which order like the numbers; NaN above all */
    Py_ssize_t recomputed, open;
} Block;

static inline float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
static inline float widened(uint16_t bits) { return as_float((uint32_t)bits << 16); }
/* Half away from zero: alike to half-to-even but for ties, and those lie within every error that is not zero. */
static inline uint16_t rounded(float value) { return (uint16_t)((as_bits(value) + 0x8000u) >> 16); }

/* The same loop for each kind of processor, with the shape that suits its registers; the best that runs here is taken.
 * A vector that is wider than the registers is split badly: GCC 12 makes AVX2 code from 64-byte vectors that is a tenth
 * as fast as from 32-byte ones. */
#if defined(__x86_64__) && defined(__GNUC__)
#define NAMED(name) name##_v4
#define TARGET __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2,lzcnt")))
#define LANES 16
#define PARTS 4
#define STRIP 4
#include "_exact_loop.h"

#define NAMED(name) name##_v3
#define TARGET __attribute__((target("avx2,fma,bmi,bmi2,lzcnt")))
#define LANES 8
#define PARTS 2
#define STRIP 6
#include "_exact_loop.h"

static int has_v4(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_v3(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
#endif

/* What every processor of the architecture has: SSE2 (16 registers of 16 bytes) or NEON (32 of them). */
#define NAMED(name) name##_baseline
#define TARGET
#define LANES 4
#if defined(__aarch64__)
#define PARTS 4
#else
#define PARTS 2
#endif
#define STRIP 4
#include "_exact_loop.h"

static int always(void) { return 1; }

static const struct { const char *name; int (*runs_here)(void); void (*settle)(Block *); } CLONES[] = {
#if defined(__x86_64__) && defined(__GNUC__)
    {"avx512", has_v4, settle_block_v4},
    {"avx2", has_v3, settle_block_v3},
#endif
    {"baseline", always, settle_block_baseline},
};
#define COUNT (int)(sizeof CLONES / sizeof *CLONES)

/* The clone of that name, or the best; NULL where this processor cannot run it. */
static void (*clone_named(const char *name))(Block *)
{
    for (int i = 0; i < COUNT; i++)
        if (CLONES[i].runs_here() && (!name || !strcmp(name, CLONES[i].name)))
            return CLONES[i].settle;
    return NULL;
}

PyDoc_STRVAR(settle_doc,
"settle(weight, delta, scaled_left, turned_right, out, rest, row_error, column_share, left, right, scale, row_bound,\n"
"       least, slope, clone=None) -> (largest, recomputed, open)\n\n"
"out <- bfloat16 of weight + delta, correctly rounded, but for the `open` flat places in `rest`; delta: None for\n"
"scaled_left @ turned_right. C-contiguous buffers: weight, out: uint16; delta, row_error (one a row), column_share (one a\n"
"column), scaled_left and left (rows x rank), turned_right (rank x columns), right (columns x rank): float32; rest: uint32;\n"
"scale (one a rank), row_bound (one a row): float64. The float32 sum's error is at most least + row_error * column_share +\n"
"slope * |sum|. `largest`: the largest |weight + delta|; not finite where one is not. `clone`: one of CLONES, by default\n"
"the first. Raises ValueError for buffers that do not fit together or a clone that this processor cannot run.");

static PyObject *settle(PyObject *self, PyObject *args)
{
    Py_buffer weight, delta, scaled_left, turned_right, out, rest, row_error, column_share, left, right, scale, row_bound;
    Py_buffer *all[] = {&weight, &delta,        &scaled_left, &turned_right, &out,   &rest,
                        &left,   &column_share, &row_error,   &right,        &scale, &row_bound};
    Block b = {0};
    PyObject *result = NULL;
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "y*z*y*y*w*w*y*y*y*y*y*y*ff|z:settle", &weight, &delta, &scaled_left, &turned_right, &out,
                          &rest, &row_error, &column_share, &left, &right, &scale, &row_bound, &b.least, &b.slope, &name))
        return NULL;
    void (*clone)(Block *) = clone_named(name);
    b.rows = row_error.len / 4;
    b.rank = scale.len / 8;
    b.columns = b.rows ? weight.len / 2 / b.rows : 0;
    const Py_ssize_t size = b.rows * b.columns, sides[2] = {4 * b.rows * b.rank, 4 * b.columns * b.rank};
    if (weight.len != 2 * size || out.len != 2 * size || (delta.buf && delta.len != 4 * size) || rest.len < 4 * size ||
        row_bound.len != 8 * b.rows || column_share.len != 4 * b.columns || left.len != sides[0] ||
        scaled_left.len != sides[0] || right.len != sides[1] || turned_right.len != sides[1] || (uint64_t)size > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "settle: the buffers' sizes do not fit together");
    } else if (!clone) {
        PyErr_Format(PyExc_ValueError, "settle: this processor cannot run the clone %s", name);
    } else {
        b.weight = weight.buf, b.delta = delta.buf, b.out = out.buf, b.rest = rest.buf, b.row_error = row_error.buf;
        b.scaled_left = scaled_left.buf, b.turned_right = turned_right.buf, b.column_share = column_share.buf;
        b.left = left.buf, b.right = right.buf, b.scale = scale.buf, b.row_bound = row_bound.buf;
        Py_BEGIN_ALLOW_THREADS
        clone(&b);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("dnn", (double)as_float(b.largest), b.recomputed, b.open);
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        PyBuffer_Release(all[i]);
    return result;
}

static PyMethodDef methods[] = {{"settle", settle, METH_VARARGS, settle_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_exact", NULL, -1, methods, NULL, NULL, NULL, NULL};

/* CLONES: the names of those that this processor can run, the best first; CHAIN. */
PyMODINIT_FUNC PyInit__exact(void)
{
    PyObject *made = PyModule_Create(&module), *names = PyList_New(0);
    for (int i = 0; made && names && i < COUNT; i++) {
        PyObject *name = CLONES[i].runs_here() ? PyUnicode_FromString(CLONES[i].name) : NULL;
        if (name && PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject *fixed = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    if (!made || !fixed || PyModule_AddObjectRef(made, "CLONES", fixed) < 0 || PyModule_AddIntMacro(made, CHAIN) < 0)
        Py_CLEAR(made);
    Py_XDECREF(fixed);
    return made;
}
