/* mask(data, key, start, stop): data[start:stop] combined with key (4 bytes) by XOR, as bytes. Source: RFC 6455 §5.3.
   mask_joined(pieces, key): the same of a list of bytes and bytearray, joined.

   frames.py has the same in Python, for where this cannot be compiled. Limited API: one wheel serves all Pythons. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "_frame.h"

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

    PyObject *result = PyBytes_FromStringAndSize(NULL, stop - start);
    if (result)
        combine(PyBytes_AsString(result), data + start, stop - start, key, 0);
    return result;
}

static int look_into(PyObject *piece, char **data, Py_ssize_t *size)
{
    if (!PyByteArray_Check(piece))
        return PyBytes_AsStringAndSize(piece, data, size);
    *data = PyByteArray_AsString(piece);
    *size = PyByteArray_Size(piece);
    return 0;
}

static PyObject *mask_joined(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *data, *key;
    Py_ssize_t size, key_size, whole = 0, done = 0;
    if (count != 2 || !PyList_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "mask_joined() takes a list and a key");
        return NULL;
    }
    PyBytes_AsStringAndSize(args[1], &key, &key_size);
    if (key_size != 4) {
        PyErr_Format(PyExc_ValueError, "mask_joined() with a key of %zd", key_size);
        return NULL;
    }
    Py_ssize_t pieces = PyList_Size(args[0]);
    for (Py_ssize_t i = 0; i < pieces; i++, whole += size)
        if (look_into(PyList_GetItem(args[0], i), &data, &size))
            return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, whole);
    if (!result)
        return NULL;
    for (Py_ssize_t i = 0; i < pieces; i++, done += size) {
        look_into(PyList_GetItem(args[0], i), &data, &size);
        combine(PyBytes_AsString(result) + done, data, size, key, done % 4);
    }
    return result;
}

static PyMethodDef methods[] = {{"mask", (PyCFunction)(void (*)(void))mask, METH_FASTCALL, NULL},
                                {"mask_joined", (PyCFunction)(void (*)(void))mask_joined, METH_FASTCALL, NULL},
                                {NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_mask", .m_methods = methods};

PyMODINIT_FUNC PyInit__mask(void)
{
    return PyModuleDef_Init(&definition);
}
