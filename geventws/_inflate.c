/* inflate_frame(data, start, most): for the one whole, masked frame of a small compressed message at data[start:], its
   payload inflated, and where the frame stops. None for anything else: permessage_deflate.py then does what has to be
   done. "Small" is a payload of at most SMALL bytes that becomes less than `most` bytes, and at most INFLATED.

   Sources: RFC 6455 §5.2, §5.3; RFC 7692 §7.2.2. Limited API: one wheel serves all Pythons. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdbool.h>
#include <string.h>
#include <zlib.h>

enum { SMALL = 2048, INFLATED = 8192 };

/* What every flush ends with, and a block that ends the stream: see permessage_deflate.py. */
static const unsigned char tail[] = {0x00, 0x00, 0xff, 0xff, 0x03, 0x00};

/* Of the module: no other thread runs while a function of it does. */
typedef struct {
    z_stream stream;
    bool ready;
} State;

/* Where the payload of the frame begins, and its size; false where the frame is not whole, not small or not masked. */
static bool find_payload(const unsigned char *frame, Py_ssize_t available, Py_ssize_t *begin, Py_ssize_t *size)
{
    if (available < 2 || !(frame[1] & 0x80) || frame[1] == 0xff) /* eight bytes of length: not small */
        return false;
    *begin = 6;
    *size = frame[1] & 0x7f;
    if (*size == 126 && available >= 4) {
        *begin = 8;
        *size = frame[2] << 8 | frame[3];
        if (*size < 126) /* not in the fewest bytes */
            return false;
    }
    return *size <= SMALL && *begin + *size <= available;
}

static bool prepare(State *state)
{
    if (state->ready)
        return inflateReset(&state->stream) == Z_OK;
    return state->ready = inflateInit2(&state->stream, -15) == Z_OK;
}

static PyObject *inflate_frame(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *data;
    Py_ssize_t end, begin, size;
    unsigned char deflated[SMALL + sizeof tail], inflated[INFLATED];
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "inflate_frame() takes 3 arguments, not %zd", count);
    if (PyBytes_AsStringAndSize(args[0], &data, &end))
        return NULL;
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (start < 0 || start > end)
        return PyErr_Format(PyExc_ValueError, "inflate_frame() of %zd bytes from %zd", end, start);

    const unsigned char *frame = (unsigned char *)data + start;
    State *state = PyModule_GetState(module);
    if (!find_payload(frame, end - start, &begin, &size) || !prepare(state))
        Py_RETURN_NONE;
    for (Py_ssize_t i = 0; i < size; i++)
        deflated[i] = frame[begin + i] ^ frame[begin - 4 + i % 4];
    memcpy(deflated + size, tail, sizeof tail);
    z_stream *stream = &state->stream;
    stream->next_in = deflated;
    stream->avail_in = (uInt)(size + sizeof tail);
    stream->next_out = inflated;
    stream->avail_out = INFLATED;
    /* All of it, and no byte left: what holds the end of a DEFLATE stream inside has bytes left. */
    if (inflate(stream, Z_FINISH) != Z_STREAM_END || stream->avail_in)
        Py_RETURN_NONE;
    Py_ssize_t received = INFLATED - stream->avail_out;
    if (received >= most)
        Py_RETURN_NONE;
    return Py_BuildValue("(y#n)", inflated, received, start + begin + size);
}

static void free_state(void *module)
{
    State *state = PyModule_GetState(module);
    if (state && state->ready)
        inflateEnd(&state->stream);
}

static PyMethodDef methods[] = {{"inflate_frame", (PyCFunction)(void (*)(void))inflate_frame, METH_FASTCALL, NULL},
                                {NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_inflate", .m_size = sizeof(State), .m_methods = methods, .m_free = free_state};

PyMODINIT_FUNC PyInit__inflate(void)
{
    return PyModuleDef_Init(&definition);
}
