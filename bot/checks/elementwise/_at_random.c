/* float64 numbers rounded up or down at random, at odds that make the expectation exact; see rounding.py, which computes the same
 * bits without a compiler. The random numbers are SplitMix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
 * generators"): the one of an element follows from the seed and its index alone. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

#define BLOCK 256 /* elements between two looks for subnormal numbers */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

static inline uint64_t drawn(uint64_t seed, uint64_t index)
{
    uint64_t mixed = seed + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94D049BB133111EB);
    return mixed ^ mixed >> 31;
}

/* How a storage rounds. `cut`: of float64's 52 bits after the point, those that it lacks; `normal`: its smallest number with all
 * bits; `smallest`: the spacing below that. */
typedef struct {
    int cut;
    double normal, smallest;
} Storage;

static inline double rounded(double exact, uint64_t below, uint64_t chance)
{
    union { double number; uint64_t bits; } value = {exact};
    value.bits = (value.bits + (chance & below)) & ~below;
    return value.number;
}

/* Here the spacing does not follow the exponent. */
static inline double rounded_small(double exact, double smallest, uint64_t chance)
{
    return floor(exact / smallest + (double)(chance >> 11) * 0x1p-53) * smallest;
}

FOR_EACH_PROCESSOR
static void round_at_random(const double *exact, double *out, Py_ssize_t count, Storage to, uint64_t seed)
{
    const uint64_t below = (UINT64_C(1) << to.cut) - 1;
    for (Py_ssize_t start = 0; start < count; start += BLOCK) {
        const Py_ssize_t end = start + BLOCK < count ? start + BLOCK : count;
        int small = 0;
        for (Py_ssize_t i = start; i < end; i++) {
            out[i] = rounded(exact[i], below, drawn(seed, (uint64_t)i));
            small |= fabs(exact[i]) < to.normal;
        }
        for (Py_ssize_t i = start; small && i < end; i++)
            if (fabs(exact[i]) < to.normal)
                out[i] = rounded_small(exact[i], to.smallest, drawn(seed, (uint64_t)i));
    }
}

/* A weight and what is added to it, in float64; `narrow`: the weight is bfloat16, else float32. */
static inline void sums(const void *weight, int narrow, const double *delta, double *exact, Py_ssize_t start, Py_ssize_t width)
{
    if (narrow)
        for (Py_ssize_t i = 0; i < width; i++) {
            const union { uint32_t bits; float number; } wide = {(uint32_t)((const uint16_t *)weight)[start + i] << 16};
            exact[i] = (double)wide.number + delta[start + i];
        }
    else
        for (Py_ssize_t i = 0; i < width; i++)
            exact[i] = (double)((const float *)weight)[start + i] + delta[start + i];
}

/* The same of weights and what is added to them; `out`: float32, which holds every number that is rounded to. */
FOR_EACH_PROCESSOR
static void add_at_random(const void *weight, int narrow, const double *delta, float *out, Py_ssize_t count, Storage to,
                          uint64_t seed)
{
    const uint64_t below = (UINT64_C(1) << to.cut) - 1;
    double exact[BLOCK];
    for (Py_ssize_t start = 0; start < count; start += BLOCK) {
        const Py_ssize_t width = start + BLOCK < count ? BLOCK : count - start;
        int small = 0;
        sums(weight, narrow, delta, exact, start, width);
        for (Py_ssize_t i = 0; i < width; i++) {
            out[start + i] = (float)rounded(exact[i], below, drawn(seed, (uint64_t)(start + i)));
            small |= fabs(exact[i]) < to.normal;
        }
        for (Py_ssize_t i = 0; small && i < width; i++)
            if (fabs(exact[i]) < to.normal)
                out[start + i] = (float)rounded_small(exact[i], to.smallest, drawn(seed, (uint64_t)(start + i)));
    }
}

static int fits(const Storage *to)
{
    if (to->cut >= 1 && to->cut <= 52)
        return 1;
    PyErr_SetString(PyExc_ValueError, "that is no number of bits");
    return 0;
}

PyDoc_STRVAR(round_at_random_doc,
"round_at_random(exact, out, cut, normal, smallest, seed)\n\n"
"exact, out: float64, C-contiguous, of one size; cut: the bits that go, 1 to 52; seed: any 64 bits. Raises ValueError.");

static PyObject *at_random(PyObject *self, PyObject *args)
{
    Py_buffer exact, out;
    Storage to;
    unsigned long long seed;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*w*iddK:round_at_random", &exact, &out, &to.cut, &to.normal, &to.smallest, &seed))
        return NULL;
    if (exact.len != out.len || exact.len % (Py_ssize_t)sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "the sizes differ");
    } else if (fits(&to)) {
        Py_BEGIN_ALLOW_THREADS
        round_at_random(exact.buf, out.buf, exact.len / (Py_ssize_t)sizeof(double), to, seed);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&exact), PyBuffer_Release(&out);
    return result;
}

PyDoc_STRVAR(add_at_random_doc,
"add_at_random(weight, delta, out, cut, normal, smallest, seed)\n\n"
"weight: bfloat16 or float32, by its size; delta: float64; out: float32; all C-contiguous, of as many elements; the rest as for\n"
"round_at_random, with the same random numbers. Raises ValueError.");

static PyObject *sum_at_random(PyObject *self, PyObject *args)
{
    Py_buffer weight, delta, out;
    Storage to;
    unsigned long long seed;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*w*iddK:add_at_random", &weight, &delta, &out, &to.cut, &to.normal, &to.smallest, &seed))
        return NULL;
    const Py_ssize_t count = delta.len / (Py_ssize_t)sizeof(double);
    const int narrow = weight.len == count * 2;
    if ((!narrow && weight.len != count * 4) || out.len != count * 4 || delta.len % (Py_ssize_t)sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "the sizes differ");
    } else if (fits(&to)) {
        Py_BEGIN_ALLOW_THREADS
        add_at_random(weight.buf, narrow, delta.buf, out.buf, count, to, seed);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&weight), PyBuffer_Release(&delta), PyBuffer_Release(&out);
    return result;
}

static PyMethodDef methods[] = {{"round_at_random", at_random, METH_VARARGS, round_at_random_doc},
                                {"add_at_random", sum_at_random, METH_VARARGS, add_at_random_doc},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_at_random", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__at_random(void) { return PyModule_Create(&definition); }
