/* The verifier's own arithmetic: W + left · right in float64, rounded once, beside what is stored; see rederive.py.
 *
 * No line of it is the merger's, nor is its way: that one adds in float32 under an error bound and settles what the bound leaves
 * open. Here every sum is a float64 chain, multiplied and added one after the other, never fused (-ffp-contract=off), so that each
 * kind of processor, and numpy in rederive.py, computes the same bits. What the stored number is not, is judged elsewhere. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define BAND 4    /* rows that share each load of the right factor */
#define TILE 128  /* columns: 16 KiB of the right factor at rank 16, which stay in the first cache while all rows pass */
#define SUMS 8    /* partial sums of each kind, by column modulo 8, whatever the width of the registers */

enum storage { BF16, F16, F32, STORAGES };
static const char *const NAMES[STORAGES] = {"BF16", "F16", "F32"};
static const int BYTES[STORAGES] = {2, 2, 4};
static const int DROPPED[STORAGES] = {45, 42, 29}; /* of float64's 52 bits behind the point, those that the storage lacks */

static const double NORMAL[STORAGES] = {0x1p-126, 0x1p-14, 0x1p-126}; /* the smallest with all bits */
/* Added to a smaller number and taken off again, it rounds that to a multiple of the smallest of all: 2⁻¹³³, 2⁻²⁴, 2⁻¹⁴⁹. */
static const double GRID[STORAGES] = {0x1.8p-81, 0x1.8p28, 0x1.8p-97};

typedef struct {
    const uint8_t *weight, *stored; /* rows × columns */
    enum storage weight_as, stored_as;
    const double *left, *right; /* rows × rank, rank × columns */
    double *out;                /* of product(): rows × columns */
    Py_ssize_t rows, columns, rank;
    int64_t equal, kept_as_before;
    double kept[SUMS], power[SUMS], size[SUMS];
} Task;

#if defined(__x86_64__) && defined(__GNUC__)
#define OF(name) name##_avx512
#define FOR __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,f16c")))
#define WIDTH 8
#define ACROSS 4
#include "_rederive_loop.h"

#define OF(name) name##_avx2
#define FOR __attribute__((target("avx2,bmi,bmi2,f16c")))
#define WIDTH 4
#define ACROSS 2
#include "_rederive_loop.h"

static int runs_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
#endif

#define OF(name) name##_baseline
#define FOR
#define WIDTH 2
#define ACROSS 2
#include "_rederive_loop.h"

static int runs_baseline(void) { return 1; }

typedef struct {
    const char *name;
    int (*runs)(void);
    void (*compare)(Task *), (*product)(Task *);
} Kind;

static const Kind KINDS[] = { /* the fastest first */
#if defined(__x86_64__) && defined(__GNUC__)
    {"avx512", runs_avx512, compare_avx512, product_avx512},
    {"avx2", runs_avx2, compare_avx2, product_avx2},
#endif
    {"baseline", runs_baseline, compare_baseline, product_baseline},
};
#define KNOWN (sizeof KINDS / sizeof *KINDS)

/* NULL, with an exception, where this processor has no such kind. No name: the fastest. */
static const Kind *kind_of(const char *name)
{
    for (size_t at = 0; at < KNOWN; at++)
        if ((!name || !strcmp(name, KINDS[at].name)) && KINDS[at].runs())
            return &KINDS[at];
    PyErr_Format(PyExc_ValueError, "this processor does not run %s", name);
    return NULL;
}

/* -1, with an exception, for a dtype that is none of these. */
static int storage_of(const char *name)
{
    for (int at = 0; at < STORAGES; at++)
        if (!strcmp(name, NAMES[at]))
            return at;
    PyErr_Format(PyExc_ValueError, "%s is not stored numbers that this reads", name);
    return -1;
}

static double added(const double *sums) /* in one order */
{
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* 0, with an exception, where the factors are not rows × rank and rank × columns. */
static int factors_fit(Task *task, const Py_buffer *left, const Py_buffer *right)
{
    const Py_ssize_t item = sizeof(double);
    if (task->rows < 0 || task->columns < 0 || task->rank < 0 || left->len != task->rows * task->rank * item ||
        right->len != task->rank * task->columns * item) {
        PyErr_SetString(PyExc_ValueError, "the factors' sizes do not fit rows, rank and columns");
        return 0;
    }
    task->left = left->buf;
    task->right = right->buf;
    return 1;
}

PyDoc_STRVAR(compare_doc,
"compare(weight, weight_as, stored, stored_as, left, right, rows, rank, columns, kind=None)\n"
"    -> (equal, kept_as_before, kept, power, size)\n\n"
"weight, stored: C-contiguous, rows x columns, stored as safetensors' BF16, F16 or F32; left (rows x rank) and right\n"
"(rank x columns): float64, the left one scaled. V = W + left @ right; equal: elements that V rounds to, once, surely (an infinity\n"
"may be right too); kept_as_before: elements that are W's. kept, power, size:\n"
"<stored - W, V - W>, <V - W, V - W>, <W, W>, not finite where an element is not. `kind`: one of KINDS, by default the first; all\n"
"give the same bits. Raises ValueError.");

static PyObject *compare(PyObject *self, PyObject *args)
{
    Py_buffer weight, stored, left, right;
    Task task = {0};
    PyObject *result = NULL;
    const char *kind_name = NULL, *weight_as, *stored_as;
    if (!PyArg_ParseTuple(args, "y*sy*sy*y*nnn|z:compare", &weight, &weight_as, &stored, &stored_as, &left, &right,
                          &task.rows, &task.rank, &task.columns, &kind_name))
        return NULL;
    const Kind *kind = kind_of(kind_name);
    const int from = storage_of(weight_as), to = storage_of(stored_as);
    if (kind && from >= 0 && to >= 0 && factors_fit(&task, &left, &right)) {
        const Py_ssize_t count = task.rows * task.columns;
        if (weight.len != count * BYTES[from] || stored.len != count * BYTES[to] ||
            (uintptr_t)weight.buf % BYTES[from] || (uintptr_t)stored.buf % BYTES[to]) {
            PyErr_SetString(PyExc_ValueError, "the weights' sizes do not fit rows and columns");
        } else {
            task.weight = weight.buf, task.stored = stored.buf, task.weight_as = from, task.stored_as = to;
            Py_BEGIN_ALLOW_THREADS
            kind->compare(&task);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("LLddd", (long long)task.equal, (long long)task.kept_as_before, added(task.kept),
                                   added(task.power), added(task.size));
        }
    }
    PyBuffer_Release(&weight), PyBuffer_Release(&stored), PyBuffer_Release(&left), PyBuffer_Release(&right);
    return result;
}

PyDoc_STRVAR(product_doc,
"product(left, right, out, rows, rank, columns, kind=None)\n\n"
"out <- left @ right, float64, C-contiguous: rows x rank, rank x columns, rows x columns. Each element is one chain of sums, in the\n"
"order of the rank. Raises ValueError.");

static PyObject *product(PyObject *self, PyObject *args)
{
    Py_buffer left, right, out;
    Task task = {0};
    PyObject *result = NULL;
    const char *kind_name = NULL;
    if (!PyArg_ParseTuple(args, "y*y*w*nnn|z:product", &left, &right, &out, &task.rows, &task.rank, &task.columns, &kind_name))
        return NULL;
    const Kind *kind = kind_of(kind_name);
    if (kind && factors_fit(&task, &left, &right)) {
        if (out.len != task.rows * task.columns * (Py_ssize_t)sizeof(double)) {
            PyErr_SetString(PyExc_ValueError, "the product's size does not fit rows and columns");
        } else {
            task.out = out.buf;
            Py_BEGIN_ALLOW_THREADS
            kind->product(&task);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&left), PyBuffer_Release(&right), PyBuffer_Release(&out);
    return result;
}

static PyMethodDef methods[] = {
    {"compare", compare, METH_VARARGS, compare_doc}, {"product", product, METH_VARARGS, product_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_rederive", NULL, -1, methods, NULL, NULL, NULL, NULL};

/* KINDS: the names of those that this processor runs, the fastest first. */
PyMODINIT_FUNC PyInit__rederive(void)
{
    const char *names[KNOWN];
    Py_ssize_t count = 0;
    for (size_t at = 0; at < KNOWN; at++)
        if (KINDS[at].runs())
            names[count++] = KINDS[at].name;
    PyObject *module = PyModule_Create(&definition), *kinds = PyTuple_New(count);
    for (Py_ssize_t at = 0; kinds && at < count; at++) {
        PyObject *name = PyUnicode_FromString(names[at]);
        if (!name)
            Py_CLEAR(kinds);
        else
            PyTuple_SET_ITEM(kinds, at, name);
    }
    if (!module || !kinds || PyModule_AddObjectRef(module, "KINDS", kinds) < 0)
        Py_CLEAR(module);
    Py_XDECREF(kinds);
    return module;
}
