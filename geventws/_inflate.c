/* inflate_frame(data, start, most): for the one whole, masked frame of a small compressed message at data[start:], its
   payload inflated, and where the frame stops. None for anything else: permessage_deflate.py then does what has to be
   done. "Small" is a payload of at most SMALL bytes that becomes less than `most` bytes, and at most INFLATED.

   Sources: RFC 6455 §5.2, §5.3; RFC 7692 §7.2.2. Limited API: one wheel serves all Pythons. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdbool.h>
#include <zlib.h>

#include "_frame.h"

enum { SMALL = 2048 };

/* What every flush ends with, and a block that ends the stream: see permessage_deflate.py. */
static const unsigned char tail[] = {0x00, 0x00, 0xff, 0xff, 0x03, 0x00};

/* No other thread runs while a function of this module does. */
static z_stream stream;

static bool prepare(void)
{
    if (stream.state)
        return inflateReset(&stream) == Z_OK;
    return inflateInit2(&stream, -15) == Z_OK;
}

/* Have `inflated`, of INFLATED bytes, hold what the frame's payload becomes; return its size, and in *stop that of the
   frame. -1 for anything else. */
static Py_ssize_t inflate_payload(const char *frame, Py_ssize_t available, Py_ssize_t most, char *inflated,
                                  Py_ssize_t *stop)
{
    Py_ssize_t begin, size = payload_size(frame, available, &begin);
    char deflated[SMALL + sizeof tail];
    if (size < 0 || size > SMALL || begin + size > available || !prepare())
        return -1;
    combine(deflated, frame + begin, size, frame + begin - 4, 0);
    memcpy(deflated + size, tail, sizeof tail);
    stream.next_in = (unsigned char *)deflated;
    stream.avail_in = (uInt)(size + sizeof tail);
    stream.next_out = (unsigned char *)inflated;
    stream.avail_out = INFLATED;
    /* All of it, and no byte left: what holds the end of a DEFLATE stream inside has bytes left. */
    if (inflate(&stream, Z_FINISH) != Z_STREAM_END || stream.avail_in)
        return -1;
    Py_ssize_t received = INFLATED - stream.avail_out;
    *stop = begin + size;
    return received < most ? received : -1;
}

static PyObject *inflate_frame(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *data, inflated[INFLATED];
    Py_ssize_t end, stop;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "inflate_frame() takes 3 arguments, not %zd", count);
    if (PyBytes_AsStringAndSize(args[0], &data, &end))
        return NULL;
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (start < 0 || start > end)
        return PyErr_Format(PyExc_ValueError, "inflate_frame() of %zd bytes from %zd", end, start);

    Py_ssize_t size = inflate_payload(data + start, end - start, most, inflated, &stop);
    if (size < 0)
        Py_RETURN_NONE;
    return Py_BuildValue("(y#n)", inflated, size, start + stop);
}

static PyMethodDef methods[] = {{"inflate_frame", (PyCFunction)(void (*)(void))inflate_frame, METH_FASTCALL, NULL},
                                {NULL}};

static int fill(PyObject *module)
{
    PyObject *function = PyCapsule_New((void *)inflate_payload, INFLATE_CAPSULE, NULL);
    int failed = PyModule_AddObjectRef(module, "inflate_payload", function);
    Py_XDECREF(function);
    return failed;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_inflate", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__inflate(void)
{
    return PyModuleDef_Init(&definition);
}
