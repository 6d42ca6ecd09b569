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

/* `cut`: of float64's 52 bits after the point, those that the storage lacks; `normal`: its smallest number with all bits;
 * `smallest`: the spacing below that. */
FOR_EACH_PROCESSOR
static void round_at_random(const double *exact, double *out, Py_ssize_t count, int cut, double normal, double smallest, uint64_t seed)
{
    const uint64_t below = (UINT64_C(1) << cut) - 1;
    for (Py_ssize_t start = 0; start < count; start += BLOCK) {
        const Py_ssize_t end = start + BLOCK < count ? start + BLOCK : count;
        int small = 0;
        for (Py_ssize_t i = start; i < end; i++) {
            union { double number; uint64_t bits; } value = {exact[i]};
            value.bits = (value.bits + (drawn(seed, (uint64_t)i) & below)) & ~below;
            out[i] = value.number;
            small |= fabs(exact[i]) < normal;
        }
        if (!small)
            continue;
        for (Py_ssize_t i = start; i < end; i++)
            if (fabs(exact[i]) < normal) /* here the spacing does not follow the exponent */
                out[i] = floor(exact[i] / smallest + (double)(drawn(seed, (uint64_t)i) >> 11) * 0x1p-53) * smallest;
    }
}

PyDoc_STRVAR(round_at_random_doc,
"round_at_random(exact, out, cut, normal, smallest, seed)\n\n"
"exact, out: float64, C-contiguous, of one size; cut: the bits that go, 1 to 52; seed: any 64 bits. Raises ValueError.");

static PyObject *at_random(PyObject *self, PyObject *args)
{
    Py_buffer exact, out;
    int cut;
    double normal, smallest;
    unsigned long long seed;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*w*iddK:round_at_random", &exact, &out, &cut, &normal, &smallest, &seed))
        return NULL;
    if (exact.len != out.len || exact.len % (Py_ssize_t)sizeof(double) || cut < 1 || cut > 52) {
        PyErr_SetString(PyExc_ValueError, "the sizes, or the number of bits, do not fit");
    } else {
        Py_BEGIN_ALLOW_THREADS
        round_at_random(exact.buf, out.buf, exact.len / (Py_ssize_t)sizeof(double), cut, normal, smallest, seed);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&exact), PyBuffer_Release(&out);
    return result;
}

static PyMethodDef methods[] = {{"round_at_random", at_random, METH_VARARGS, round_at_random_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_at_random", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__at_random(void) { return PyModule_Create(&definition); }
