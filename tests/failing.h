/* Included before all else of _fast.c: what asks for memory there fails once, at its call number `failing`, from 1. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

long calls, failing; /* which tests/failing.py sets */

static inline int fails(void)
{
    if (++calls != failing)
        return 0;
    PyErr_NoMemory();
    return 1;
}

/* A macro does not expand its own name again. */
#define PyBytes_FromStringAndSize(...) (fails() ? NULL : PyBytes_FromStringAndSize(__VA_ARGS__))
#define PyUnicode_DecodeUTF8(...) (fails() ? NULL : PyUnicode_DecodeUTF8(__VA_ARGS__))
#define PyUnicode_DecodeLocale(...) (fails() ? NULL : PyUnicode_DecodeLocale(__VA_ARGS__))
#define PyUnicode_AsUTF8AndSize(...) (fails() ? NULL : PyUnicode_AsUTF8AndSize(__VA_ARGS__))
#define PyUnicode_Resize(...) (fails() ? -1 : PyUnicode_Resize(__VA_ARGS__))
#define PySequence_Repeat(...) (fails() ? NULL : PySequence_Repeat(__VA_ARGS__))
#define PyTuple_New(...) (fails() ? NULL : PyTuple_New(__VA_ARGS__))
#define PyDict_New(...) (fails() ? NULL : PyDict_New(__VA_ARGS__))
#define PyDict_SetItem(...) (fails() ? -1 : PyDict_SetItem(__VA_ARGS__))
#define PyList_Append(...) (fails() ? -1 : PyList_Append(__VA_ARGS__))
#define PyList_SetSlice(...) (fails() ? -1 : PyList_SetSlice(__VA_ARGS__))
#define PySequence_DelSlice(...) (fails() ? -1 : PySequence_DelSlice(__VA_ARGS__))
#define PyByteArray_Resize(...) (fails() ? -1 : PyByteArray_Resize(__VA_ARGS__))
#define PyObject_Call(...) (fails() ? NULL : PyObject_Call(__VA_ARGS__))
#ifdef PyObject_CallMethod /* these two are macros up to Python 3.12 */
#undef PyObject_CallFunction
#undef PyObject_CallMethod
#define PyObject_CallFunction(...) (fails() ? NULL : _PyObject_CallFunction_SizeT(__VA_ARGS__))
#define PyObject_CallMethod(...) (fails() ? NULL : _PyObject_CallMethod_SizeT(__VA_ARGS__))
#else
#define PyObject_CallFunction(...) (fails() ? NULL : PyObject_CallFunction(__VA_ARGS__))
#define PyObject_CallMethod(...) (fails() ? NULL : PyObject_CallMethod(__VA_ARGS__))
#endif
#undef PyObject_GC_New
#define PyObject_GC_New(type, typeobj) (fails() ? NULL : (type *)_PyObject_GC_New(typeobj))
