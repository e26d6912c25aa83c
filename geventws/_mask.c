/* mask(data, key, start, stop): data[start:stop] combined with key (4 bytes) by XOR, as bytes. Source: RFC 6455 §5.3.

   frames.py has the same in Python, for where this cannot be compiled. Limited API: one wheel serves all Pythons. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

static PyObject *mask(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *data, *key;
    Py_ssize_t data_size, key_size;
    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "mask() takes 4 arguments, not %zd", count);
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &data, &data_size) || PyBytes_AsStringAndSize(args[1], &key, &key_size))
        return NULL;
    Py_ssize_t start = PyLong_AsSsize_t(args[2]), stop = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (key_size != 4 || start < 0 || start > stop || stop > data_size) {
        PyErr_Format(PyExc_ValueError, "mask() of %zd bytes from %zd to %zd with a key of %zd", data_size, start, stop,
                     key_size);
        return NULL;
    }

    Py_ssize_t size = stop - start, i = 0;
    PyObject *result = PyBytes_FromStringAndSize(NULL, size);
    if (!result)
        return NULL;
    const char *from = data + start;
    char *to = PyBytes_AsString(result);
    uint64_t keys, octets;
    memcpy(&keys, key, 4);
    memcpy((char *)&keys + 4, key, 4);
    for (; i + 8 <= size; i += 8) { /* the compiler makes SIMD of it */
        memcpy(&octets, from + i, 8);
        octets ^= keys;
        memcpy(to + i, &octets, 8);
    }
    for (; i < size; i++)
        to[i] = from[i] ^ key[i % 4];
    return result;
}

static PyMethodDef methods[] = {{"mask", (PyCFunction)(void (*)(void))mask, METH_FASTCALL, NULL}, {NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_mask", .m_methods = methods};

PyMODINIT_FUNC PyInit__mask(void)
{
    return PyModuleDef_Init(&definition);
}
