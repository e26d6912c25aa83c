/* The plain cases of reading, receive(), iteration, send(), post() and write(), and of delivering to the members of a
   room, as transport.py, session.py, connection.py, websocket.py and rooms/lane.py have them. Those are the
   specification. Whatever is unusual in any way goes to the Python method of the same name, before anything is done for
   it, or by next_place() to the lane.

   Plain is a connection on TCP or a Unix socket, open at both ends, without DEBUG log, on the thread of its hub. It gets
   whole, masked messages in one frame each, and its peer takes what it is sent. The fields below are those of the Python
   objects: there are no others. All of it runs under the GIL, and nothing here runs Python while bytes are in `buffer`.

   Limited API: one library serves all Pythons. Sources: RFC 6455 §5; greenlet's C API, by its capsule. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "_frame.h"

enum { TEXT = 0x81, BINARY = 0x82, COMPRESSED = 0x40 }; /* first bytes of a frame that is a whole message */
/* As in transport.py, session.py, permessage_deflate.py and turns.py. */
enum { READ_SIZE = 131000, CORK_SIZE = 16384, SMALL_SHARE = 8192, SMALLEST_LIMIT = 2048, WORK_PER_PASS = 1 << 18 };
enum {
    MOST = 262144,    /* bytes of a large message that come in one read */
    LARGE = 4096,     /* bytes from which on a message that is not whole yet stays here */
    SMALL = 2048,     /* bytes up to which a payload is copied behind its header, rather than sent from where it is */
    SMALL_TEXT = 256, /* characters up to which a text may keep its UTF-8 */
    EDITION = 3,      /* as in fast.py */
};
double geventws_turn = 0.005; /* seconds; tests lengthen it */

/* What Python objects hold for both. First those that are objects, for the garbage collector. */

typedef struct {
    PyObject_HEAD
    PyObject *owner, *pipe, *outbox, *blocked, *broken, *congested, *corked, *finishing, *reading;
    int fd; /* -1: it is for Python to read and write */
    long long bytes_received, bytes_sent;
    double last_received;
} Transport;

typedef struct {
    PyObject_HEAD
    PyObject *state, *message, *buffer, *limited, *deflate, *piece;
    long long max_message_size, inflated;
    /* Of a large message whose frame is not all here, its payload is in `piece`, unmasked, at the beginning. That is a
       str or bytes which nobody else has: what it says may be written, to `payload`. */
    long long piece_size;
    char *payload;
    Py_ssize_t room, arrived;
    char header[14]; /* as it came, with the key at its end */
    Py_ssize_t header_size;
} Connection;

typedef struct {
    PyObject_HEAD
    PyObject *connection, *transport, *queue, *reader, *debug, *turns, *hub;
    long long most_frames, messages_received;
} Session;

typedef struct {
    PyObject_HEAD
    PyObject *session, *hub, *streak, *before_wait, *end_told;
    long long messages_sent;
    double turn_ends;
} WebSocket;

typedef struct {
    PyObject_HEAD
    PyObject *target;
    double until;
} Streak;

typedef struct {
    PyObject_HEAD
    PyObject *timer;
    long long left;
} Turns;

typedef struct {
    PyObject_HEAD
    PyObject *round, *counts;
    long long stop;
} Lane;

typedef struct {
    PyObject_HEAD
    PyObject *ws, *id, *lane, *pace;
    long long cursor;
} Place;

typedef struct {
    PyObject_HEAD
    PyObject *prepared, *excluded;
    long long start, stop, count, size;
} Batch;

typedef struct {
    PyObject_HEAD
    long long delivered;
} Counts;

typedef struct { /* what iteration over a WebSocket is */
    PyObject_HEAD
    PyObject *websocket;
    bool calls_receive; /* an app's own */
    bool is_over;       /* as a generator is behind its end or an exception */
} Messages;

typedef struct { /* calls back when a socket can be read, as gevent's watcher does */
    PyObject_HEAD
    PyObject *poller, *callback;
    int fd;
    int generation; /* of the process in which it was started */
    char active;
} Watcher;

/* What one read brings. */
typedef struct {
    Session *session;
    Py_ssize_t end;            /* of what is in the buffer */
    long long limit;           /* frames that may be taken in */
    Py_ssize_t inflated, size; /* bytes that compressed messages became; and the length of all, as len() has it */
    PyObject *rest;            /* what is for Python */
    bool is_lost;              /* for want of memory */
    int error;                 /* of the socket */
} Read;

enum { EVENTS = 64 };

typedef struct { /* the sockets of one hub: an epoll set, which libev watches as one */
    PyObject_HEAD
    PyObject *loop, *watcher;
    int fd;
    int generation;
    Py_ssize_t active;
    /* Of the pass that is running. */
    bool is_running;
    int next, count;
    struct epoll_event events[EVENTS];
    Session *served[EVENTS]; /* whose queues are to be looked at again */
    int served_count;
    Read left; /* what a view has read that is for Python */
} Poller;

#define OBJECTS(Type, first, last)                                                                                     \
    static int Type##_traverse(PyObject *self, visitproc visit, void *arg)                                             \
    {                                                                                                                  \
        Py_VISIT(Py_TYPE(self));                                                                                       \
        for (PyObject **each = &((Type *)self)->first; each <= &((Type *)self)->last; each++)                          \
            Py_VISIT(*each);                                                                                           \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static int Type##_clear(PyObject *self)                                                                            \
    {                                                                                                                  \
        for (PyObject **each = &((Type *)self)->first; each <= &((Type *)self)->last; each++)                          \
            Py_CLEAR(*each);                                                                                           \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static void Type##_dealloc(PyObject *self)                                                                         \
    {                                                                                                                  \
        PyTypeObject *type = Py_TYPE(self);                                                                            \
        PyObject_GC_UnTrack(self);                                                                                     \
        Type##_clear(self);                                                                                            \
        PyObject_GC_Del(self);                                                                                         \
        Py_DECREF(type);                                                                                               \
    }

OBJECTS(Transport, owner, reading)
OBJECTS(Connection, state, piece)
OBJECTS(Session, connection, hub)
OBJECTS(WebSocket, session, end_told)
OBJECTS(Streak, target, target)
OBJECTS(Turns, timer, timer)
OBJECTS(Lane, round, counts)
OBJECTS(Place, ws, pace)
OBJECTS(Batch, prepared, excluded)
OBJECTS(Messages, websocket, websocket)
OBJECTS(Watcher, poller, callback)
OBJECTS(Poller, loop, watcher)

#define OBJECT(Type, name, field) {name, T_OBJECT_EX, offsetof(Type, field), 0, NULL}
#define NUMBER(Type, name, field) {name, T_LONGLONG, offsetof(Type, field), 0, NULL}
#define SECONDS(Type, name, field) {name, T_DOUBLE, offsetof(Type, field), 0, NULL}

static PyMemberDef transport_members[] = {
    OBJECT(Transport, "_owner", owner),
    OBJECT(Transport, "_pipe", pipe),
    OBJECT(Transport, "_outbox", outbox),
    OBJECT(Transport, "blocked", blocked),
    OBJECT(Transport, "broken", broken),
    OBJECT(Transport, "congested", congested),
    OBJECT(Transport, "_corked", corked),
    OBJECT(Transport, "_finishing", finishing),
    OBJECT(Transport, "reading", reading),
    {"_fd", T_INT, offsetof(Transport, fd), 0, NULL},
    NUMBER(Transport, "bytes_received", bytes_received),
    NUMBER(Transport, "bytes_sent", bytes_sent),
    SECONDS(Transport, "last_received", last_received),
    {NULL},
};
static PyMemberDef connection_members[] = {
    OBJECT(Connection, "state", state),
    OBJECT(Connection, "_message", message),
    OBJECT(Connection, "_buffer", buffer),
    OBJECT(Connection, "limited", limited),
    OBJECT(Connection, "deflate", deflate),
    NUMBER(Connection, "max_message_size", max_message_size),
    NUMBER(Connection, "inflated", inflated),
    NUMBER(Connection, "_piece_size", piece_size),
    {NULL},
};
static PyMemberDef session_members[] = {
    OBJECT(Session, "connection", connection),
    OBJECT(Session, "transport", transport),
    OBJECT(Session, "queue", queue),
    OBJECT(Session, "reader", reader),
    OBJECT(Session, "debug", debug),
    OBJECT(Session, "_turns", turns),
    OBJECT(Session, "_hub", hub),
    NUMBER(Session, "most_frames", most_frames),
    NUMBER(Session, "messages_received", messages_received),
    {NULL},
};
static PyMemberDef websocket_members[] = {
    OBJECT(WebSocket, "_session", session),
    OBJECT(WebSocket, "_hub", hub),
    OBJECT(WebSocket, "_streak", streak),
    OBJECT(WebSocket, "before_wait", before_wait),
    OBJECT(WebSocket, "_end_told", end_told),
    NUMBER(WebSocket, "messages_sent", messages_sent),
    SECONDS(WebSocket, "_turn_ends", turn_ends),
    {NULL},
};
static PyMemberDef turns_members[] = {
    OBJECT(Turns, "_timer", timer),
    NUMBER(Turns, "left", left),
    {NULL},
};
static PyMemberDef streak_members[] = {
    OBJECT(Streak, "target", target),
    SECONDS(Streak, "until", until),
    {NULL},
};

static PyMemberDef lane_members[] = {
    OBJECT(Lane, "_round", round),
    OBJECT(Lane, "counts", counts),
    NUMBER(Lane, "_stop", stop),
    {NULL},
};
static PyMemberDef place_members[] = {
    OBJECT(Place, "ws", ws),
    OBJECT(Place, "id", id),
    OBJECT(Place, "lane", lane),
    OBJECT(Place, "pace", pace),
    NUMBER(Place, "cursor", cursor),
    {NULL},
};
static PyMemberDef batch_members[] = {
    OBJECT(Batch, "prepared", prepared),
    OBJECT(Batch, "excluded", excluded),
    NUMBER(Batch, "start", start),
    NUMBER(Batch, "stop", stop),
    NUMBER(Batch, "count", count),
    NUMBER(Batch, "size", size),
    {NULL},
};
static PyMemberDef counts_members[] = {NUMBER(Counts, "delivered", delivered), {NULL}};

/* What take_over() is given, once. */

enum Method { ON_READABLE, WRITE, RECEIVE, SEND, POST, ITERATE, METHODS };
static PyObject *general[METHODS]; /* the Python functions */
static PyTypeObject *socket_type, *transport_type, *connection_type, *session_type, *websocket_type, *streak_type,
    *turns_type;
static PyTypeObject *messages_type, *watcher_type, *poller_type;
static PyTypeObject *turns_fields, *lane_fields, *place_fields, *batch_fields, *counts_fields;
static PyObject *open_state;
static Inflate *inflate_payload; /* NULL where it is not compiled */
static void **greenlet_api;      /* the capsule's table: two entries of it, at places that are fixed */
#define get_current ((PyObject * (*)(void)) greenlet_api[4])
#define switch_to ((PyObject * (*)(PyObject *, PyObject *, PyObject *)) greenlet_api[6])

/* The hub of this thread and its poller, by enter(). threads.py holds both for as long as the thread lives. */
static _Thread_local PyObject *home;
static _Thread_local Poller *polling;
static PyTypeObject *viewing; /* the last type of greenlet that was found to have no switch_out() */
static PyObject *threshold_name, *inflate_frame_name, *settings_name, *compressor_name, *space;
static char buffer[READ_SIZE];
static int generation; /* forks between the first process and this one */

/* Calling Python */

static bool call(PyObject *object, const char *method)
{
    PyObject *result = PyObject_CallMethod(object, method, NULL);
    Py_XDECREF(result);
    return result != NULL;
}

static bool call_with(PyObject *object, const char *method, PyObject *argument)
{
    PyObject *result = argument ? PyObject_CallMethod(object, method, "O", argument) : NULL;
    Py_XDECREF(result);
    return result != NULL;
}

static bool call_with_error(Transport *transport, const char *method, int error)
{
    PyObject *reason = PyUnicode_DecodeLocale(strerror(error), "surrogateescape");
    PyObject *exception = reason ? PyObject_CallFunction(PyExc_OSError, "iO", error, reason) : NULL;
    Py_XDECREF(reason);
    bool done = call_with((PyObject *)transport, method, exception);
    Py_XDECREF(exception);
    return done;
}

/* Have Python do what a method was called for. */
static PyObject *in_python(enum Method method, PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    PyObject *result = NULL, *keywords = named ? PyDict_New() : NULL, *all = PyTuple_New(1 + count);
    if (!all || (named && !keywords))
        goto end;
    PyTuple_SetItem(all, 0, Py_NewRef(self));
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SetItem(all, 1 + i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; i < named; i++)
        if (PyDict_SetItem(keywords, PyTuple_GetItem(names, i), args[count + i]))
            goto end;
    result = PyObject_Call(general[method], all, keywords);
end:
    Py_XDECREF(all);
    Py_XDECREF(keywords);
    return result;
}

static double monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void replace(PyObject **field, PyObject *value)
{
    PyObject *before = *field;
    *field = Py_NewRef(value);
    Py_XDECREF(before);
}

/* What is plain */

static bool has_plain_pipe(Transport *transport)
{
    return transport->fd >= 0 && transport->pipe && Py_TYPE(transport->pipe) == socket_type &&
           transport->broken == Py_False && transport->finishing == Py_False && transport->outbox &&
           PyByteArray_CheckExact(transport->outbox);
}

static Connection *connection_of(Session *session) { return (Connection *)session->connection; }
static Transport *transport_of(Session *session) { return (Transport *)session->transport; }

/* Return the session as far as nothing in it is unusual, for as long as the caller holds what has it; else NULL. */
static Session *plain_session(PyObject *object)
{
    Session *session = (Session *)object;
    if (!object || Py_TYPE(object) != session_type || session->debug != Py_False || !session->queue ||
        !PyList_CheckExact(session->queue) || !session->connection || !session->transport || !session->turns ||
        !session->hub || Py_TYPE(session->connection) != connection_type ||
        Py_TYPE(session->transport) != transport_type || connection_of(session)->state != open_state ||
        !connection_of(session)->deflate || !has_plain_pipe(transport_of(session)))
        return NULL;
    return session;
}

static Session *session_here(WebSocket *websocket)
{
    if (Py_TYPE((PyObject *)websocket) != websocket_type || websocket->hub != home || !websocket->streak ||
        Py_TYPE(websocket->streak) != streak_type)
        return NULL;
    return plain_session(websocket->session);
}

/* Messages in pieces */

/* Make a piece longer, whose new end is not written. The UTF-8 of a str in ASCII is the str itself. */
static bool lengthen_text(Connection *connection, Py_ssize_t size)
{
    if (!connection->piece)
        connection->piece = PySequence_Repeat(space, 2);
    if (!connection->piece || PyUnicode_Resize(&connection->piece, size))
        return false;
    connection->payload = (char *)PyUnicode_AsUTF8AndSize(connection->piece, NULL);
    return connection->payload;
}

static bool lengthen_bytes(Connection *connection, Py_ssize_t size)
{
    PyObject *before = connection->piece, *piece = PyBytes_FromStringAndSize(NULL, size);
    if (!piece)
        return false;
    if (before)
        memcpy(PyBytes_AsString(piece), connection->payload, connection->arrived);
    Py_XDECREF(before);
    connection->piece = piece;
    connection->payload = PyBytes_AsString(piece);
    return true;
}

/* Have room for 64 times what has come of a message, and not for all that its header claims. */
static bool grow(Connection *connection)
{
    Py_ssize_t wanted = 64 * connection->arrived;
    wanted = wanted < LARGE ? LARGE : wanted;
    wanted = wanted < connection->piece_size ? wanted : connection->piece_size;
    if (connection->piece && connection->room >= wanted)
        return true;
    bool is_text = connection->header[0] == (char)TEXT;
    bool done = is_text ? lengthen_text(connection, wanted) : lengthen_bytes(connection, wanted);
    connection->room = wanted;
    if (!done) {
        Py_CLEAR(connection->piece);
        connection->piece_size = 0;
    }
    return done;
}

/* Unmask what has come behind `arrived`; false for text that is not all ASCII, which Python looks at more closely. */
static bool take_piece(Connection *connection, Py_ssize_t size)
{
    char *end = connection->payload + connection->arrived;
    bool is_ascii = combine(end, end, size, connection->header + connection->header_size - 4, connection->arrived % 4);
    connection->arrived += size;
    return is_ascii || connection->header[0] == (char)BINARY;
}

/* Return the frame of which a part is here as it came, and what came behind that part, for Python to take in. */
static PyObject *hand_back(Connection *connection, const char *behind, Py_ssize_t size)
{
    Py_ssize_t arrived = connection->arrived, begin = connection->header_size;
    PyObject *piece = connection->piece, *frame = PyBytes_FromStringAndSize(NULL, begin + arrived + size);
    if (frame) {
        char *to = PyBytes_AsString(frame);
        memcpy(to, connection->header, begin);
        combine(to + begin, connection->payload, arrived, connection->header + begin - 4, 0);
        memcpy(to + begin + arrived, behind, size);
    }
    connection->piece = NULL;
    connection->piece_size = 0;
    Py_DECREF(piece);
    return frame;
}

/* Begin a large message whose frame is not all here. 0 where it is for Python, -1 without memory. */
static int begin_piece(Connection *connection, const char *frame, Py_ssize_t available)
{
    Py_ssize_t begin, size = payload_size(frame, available, &begin);
    bool is_plain = frame[0] == (char)TEXT || frame[0] == (char)BINARY;
    if (!is_plain || size < LARGE || size > connection->max_message_size || size <= available - begin)
        return 0; /* what is all here, and is not taken in, is not UTF-8 */
    connection->piece_size = size;
    connection->arrived = available - begin;
    connection->header_size = begin;
    memcpy(connection->header, frame, begin);
    if (!grow(connection))
        return -1;
    connection->arrived = 0;
    memcpy(connection->payload, frame + begin, available - begin);
    if (take_piece(connection, available - begin))
        return 1;
    Py_CLEAR(connection->piece);
    connection->piece_size = 0;
    return 0;
}

/* Return the message that is all here. */
static PyObject *end_piece(Connection *connection)
{
    PyObject *message = connection->piece;
    connection->piece = NULL;
    connection->piece_size = 0;
    return message;
}

/* Reading */

static bool queue_message(Read *read, PyObject *message)
{
    bool done = message && !PyList_Append(read->session->queue, message);
    if (done) {
        read->size += PyObject_Size(message);
        read->session->messages_received++;
        read->limit--;
    }
    Py_XDECREF(message);
    return done;
}

/* Return the text, NULL for bytes that are none: Python sees them as they came, and tells the peer. */
static PyObject *as_text(char *payload, Py_ssize_t size)
{
    PyObject *text = PyUnicode_DecodeUTF8(payload, size, NULL);
    if (!text && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        PyErr_Clear();
    return text;
}

/* Return a message that is a whole frame, and where that stops. NULL for what is for Python, or with an error. */
static PyObject *whole_message(Connection *connection, char *frame, Py_ssize_t available, Py_ssize_t *stop)
{
    Py_ssize_t begin, size = payload_size(frame, available, &begin);
    if (size < 0 || size > available - begin || size > connection->max_message_size)
        return NULL;
    char *payload = frame + begin, *key = payload - 4;
    PyObject *message;
    if (frame[0] == (char)BINARY) {
        message = PyBytes_FromStringAndSize(NULL, size);
        if (message)
            combine(PyBytes_AsString(message), payload, size, key, 0);
    } else {
        combine(payload, payload, size, key, 0);
        message = as_text(payload, size);
        if (!message)
            combine(payload, payload, size, key, 0);
    }
    *stop = begin + size;
    return message;
}

/* The same of a small compressed one. */
static PyObject *inflated_message(Read *read, char *frame, Py_ssize_t available, Py_ssize_t *stop)
{
    Connection *connection = connection_of(read->session);
    char inflated[INFLATED];
    Py_ssize_t most = SMALL_SHARE - read->inflated; /* others are to have their turn, for which Python sees */
    if (!inflate_payload || connection->deflate == Py_None || connection->max_message_size < SMALLEST_LIMIT)
        return NULL;
    PyObject *function = PyObject_GetAttr(connection->deflate, inflate_frame_name);
    Py_XDECREF(function);
    if (!function || function == Py_None)
        return NULL;
    most = most <= connection->max_message_size ? most : connection->max_message_size + 1;
    Py_ssize_t size = inflate_payload(frame, available, most, inflated, stop);
    if (size < 0)
        return NULL;
    bool is_text = frame[0] == (char)(COMPRESSED | TEXT);
    PyObject *message = is_text ? as_text(inflated, size) : PyBytes_FromStringAndSize(inflated, size);
    if (message) {
        read->inflated += size;
        connection->inflated += size;
    }
    return message;
}

/* Queue the messages whose frames stand at the beginning of the buffer; return where the rest begins, or -1. */
static Py_ssize_t queue_messages(Read *read)
{
    Py_ssize_t start = 0, stop;
    while (start < read->end && read->limit) {
        char *frame = buffer + start;
        PyObject *message = NULL;
        if (frame[0] == (char)TEXT || frame[0] == (char)BINARY)
            message = whole_message(connection_of(read->session), frame, read->end - start, &stop);
        else if (frame[0] == (char)(COMPRESSED | TEXT) || frame[0] == (char)(COMPRESSED | BINARY))
            message = inflated_message(read, frame, read->end - start, &stop);
        if (!message)
            return PyErr_Occurred() ? -1 : start;
        if (!queue_message(read, message))
            return -1;
        start += stop;
    }
    return start;
}

/* Take in what is in the buffer, without a word of Python. */
static void take_in(Read *read)
{
    Connection *connection = connection_of(read->session);
    Py_ssize_t start = queue_messages(read), left = read->end - start;
    int is_here = start >= 0 && left && read->limit ? begin_piece(connection, buffer + start, left) : 0;
    read->is_lost = start < 0 || is_here < 0;
    if (!read->is_lost && left && !is_here) {
        read->rest = PyBytes_FromStringAndSize(buffer + start, left);
        read->is_lost = !read->rest;
    }
    if (read->is_lost)
        PyErr_Clear();
    else if (read->rest && !read->limit) {
        replace(&connection->buffer, read->rest);
        replace(&connection->limited, Py_True);
        Py_CLEAR(read->rest);
    }
}

/* Take in `arrived` bytes of the piece, then what is in the buffer. */
static void take_in_piece(Read *read, Py_ssize_t arrived)
{
    Connection *connection = connection_of(read->session);
    if (!take_piece(connection, arrived)) {
        read->rest = hand_back(connection, buffer, read->end);
        read->is_lost = !read->rest;
    } else if (connection->arrived < connection->piece_size)
        read->is_lost = !grow(connection);
    else if (queue_message(read, end_piece(connection)))
        take_in(read);
    else
        read->is_lost = true;
    if (read->is_lost)
        PyErr_Clear();
}

static ssize_t read_bytes(Transport *transport, Connection *connection, Py_ssize_t *arrived)
{
    struct iovec parts[2] = {{buffer, READ_SIZE}, {buffer, READ_SIZE}};
    *arrived = 0;
    if (!connection->piece)
        return recv(transport->fd, buffer, READ_SIZE, 0);
    Py_ssize_t room = connection->room - connection->arrived;
    bool is_last = connection->arrived + room == connection->piece_size && room <= MOST;
    parts[0].iov_base = connection->payload + connection->arrived;
    parts[0].iov_len = room < MOST ? room : MOST;
    ssize_t size = readv(transport->fd, parts, is_last ? 2 : 1);
    *arrived = size < (ssize_t)parts[0].iov_len ? size : (ssize_t)parts[0].iov_len;
    return size;
}

/* Read once, and take in what comes. False where Python is to read, for which nothing is lost. The session is held. */
static bool read_once(Transport *transport, Read *read)
{
    Session *session = Py_TYPE((PyObject *)transport) == transport_type ? plain_session(transport->owner) : NULL;
    Connection *connection = session ? connection_of(session) : NULL;
    Py_ssize_t arrived;
    if (!session || session->transport != (PyObject *)transport || connection->message != Py_None ||
        !connection->buffer || PyObject_IsTrue(connection->buffer))
        return false;
    ssize_t size = read_bytes(transport, connection, &arrived);
    int error = errno;
    if (!size) /* the end, which another read sees again */
        return false;
    *read = (Read){(Session *)Py_NewRef((PyObject *)session), size - arrived,
                   session->most_frames - PyList_Size(session->queue), 0, 0, NULL, false, 0};
    if (size < 0) {
        read->error = error == EAGAIN || error == EWOULDBLOCK || error == EINTR ? 0 : error;
        return true;
    }
    read->limit = read->limit < 1 ? 1 : read->limit;
    transport->bytes_received += size;
    transport->last_received = monotonic();
    int collects = PyGC_Disable(); /* a collection, as an exception may begin one, runs Python */
    if (arrived)
        take_in_piece(read, arrived);
    else
        take_in(read);
    if (collects)
        PyGC_Enable();
    return true;
}

static bool is_for_python(Read *read) { return read->rest || read->is_lost || read->error; }

/* Note what messages have become, and what their view will cost. In a pass that has been paid for, that is a number;
   else false, as it is for Python. */
static bool spend(Read *read)
{
    Turns *turns = (Turns *)read->session->turns;
    if (!read->inflated)
        return true;
    if (Py_TYPE(read->session->turns) != turns_type || turns->left >= WORK_PER_PASS)
        return false;
    turns->left -= read->inflated + read->size;
    return true;
}

/* Have Python do its part of what was read. */
static bool tell_python(Read *read)
{
    PyObject *session = (PyObject *)read->session, *transport = read->session->transport;
    bool done = true;
    if (read->error)
        done = call_with_error((Transport *)transport, "_fail_reading", read->error);
    else if (read->is_lost)
        done = call(transport, "give_up");
    else if (read->rest) {
        PyObject *result =
            PyObject_CallMethod(session, "data_received", "Onn", read->rest, read->inflated, read->size);
        done = result;
        Py_XDECREF(result);
    } else if (!spend(read)) {
        PyObject *result = PyObject_CallMethod(read->session->turns, "spend", "n", read->inflated + read->size);
        done = result;
        Py_XDECREF(result);
    }
    Py_CLEAR(read->rest);
    return done;
}

static bool has_waiting_view(Session *session)
{
    return PyList_Size(session->queue) && session->reader && session->reader != Py_None;
}

/* Read no more, if the view has not taken all. */
static bool pause_if_full(Session *session)
{
    if (!PyList_Size(session->queue) && connection_of(session)->limited == Py_False)
        return true;
    return call((PyObject *)session, "pause_if_full");
}

/* Switch to the view, if it waits for a message. */
static bool wake_reader(Session *session)
{
    if (!has_waiting_view(session))
        return true;
    PyObject *current = get_current(), *result;
    Py_XDECREF(current);
    if (current != session->hub)
        return call((PyObject *)session, "_wake_reader");
    PyObject *reader = Py_NewRef(session->reader);
    result = switch_to(reader, NULL, NULL);
    Py_DECREF(reader);
    Py_XDECREF(result);
    return result;
}

/* Return whether all is done, if only by the end of a connection for want of memory: what it has read is lost. */
static bool is_done(bool done, PyObject *transport)
{
    if (done || !PyErr_ExceptionMatches(PyExc_MemoryError))
        return done;
    PyErr_Clear();
    return call(transport, "give_up");
}

/* Have the view take what has come. An exception is of any view that was switched to meanwhile. */
static bool hand_over(Session *session)
{
    PyObject *type, *value, *traceback;
    bool woke = wake_reader(session);
    PyErr_Fetch(&type, &value, &traceback);
    bool done = is_done(pause_if_full(session), session->transport);
    if (!woke)
        PyErr_Restore(type, value, traceback);
    return woke && done;
}

/* Have Python and the view do their parts of what was read. */
static bool finish_read(Read *read)
{
    bool is_over = is_for_python(read); /* data_received() wakes the view itself */
    return is_done(tell_python(read), read->session->transport) && (is_over || hand_over(read->session));
}

static PyObject *on_readable(PyObject *self, PyObject *unused)
{
    Read read;
    bool done;
    if (read_once((Transport *)self, &read)) {
        done = finish_read(&read);
        Py_DECREF(read.session);
    } else {
        PyObject *result = in_python(ON_READABLE, self, NULL, 0, NULL);
        Py_XDECREF(result);
        done = is_done(result, self);
    }
    return done ? Py_NewRef(Py_None) : NULL;
}

/* Polling */

static void note_fork(void) { generation++; }

/* Whether this process has made the epoll set. That of a parent has the parent's sockets. */
static bool is_ours(Poller *poller) { return poller->generation == generation; }

/* Tell the hub of an exception, as gevent does for a callback's. */
static void report(Poller *poller, PyObject *context)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *told = PyObject_CallMethod(poller->loop, "handle_error", "OOOO", context, type, value ? value : Py_None,
                                         traceback ? traceback : Py_None);
    if (!told)
        PyErr_WriteUnraisable(context);
    Py_XDECREF(told);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

/* Return the transport whose own method is the callback, else NULL. */
static Transport *transport_that_reads(Watcher *watcher)
{
    bool is_own = watcher->callback && PyCFunction_Check(watcher->callback) &&
                  PyCFunction_GetFunction(watcher->callback) == on_readable;
    return is_own ? (Transport *)PyCFunction_GetSelf(watcher->callback) : NULL;
}

/* Return where to go from a view that waits: to the next one for which there is a message in this pass, or to the hub,
   which does what is not plain. */
static PyObject *next_greenlet(PyObject *hub)
{
    Poller *poller = polling;
    if (!poller || poller->left.session || !poller->is_running || !is_ours(poller))
        return hub;
    /* More than one pass has sockets only where an app runs the loop within a callback of it. */
    while (poller->next < poller->count && poller->served_count < EVENTS) {
        Watcher *watcher = poller->events[poller->next].data.ptr;
        Transport *transport = watcher ? transport_that_reads(watcher) : NULL;
        if (watcher && (!transport || !read_once(transport, &poller->left)))
            break;
        poller->next++;
        if (!watcher)
            continue;
        if (is_for_python(&poller->left) || !spend(&poller->left))
            break; /* Python may let others run */
        Session *session = poller->left.session;
        poller->left.session = NULL;
        poller->served[poller->served_count++] = session;
        if (has_waiting_view(session) && session->hub == hub)
            return session->reader;
    }
    return hub;
}

/* Do for Python what views have left, back in the hub. */
static void catch_up(Poller *poller)
{
    if (poller->left.session) {
        Read left = poller->left;
        poller->left.session = NULL;
        if (!finish_read(&left))
            report(poller, left.session->transport);
        Py_DECREF(left.session);
    }
    while (poller->served_count) {
        Session *session = poller->served[--poller->served_count];
        if (!is_done(pause_if_full(session), session->transport))
            report(poller, session->transport);
        Py_DECREF(session);
    }
}

/* Do what can be read now, of EVENTS sockets at most. */
static PyObject *poll(PyObject *self, PyObject *unused)
{
    Poller *poller = (Poller *)self;
    if (!is_ours(poller))
        return PyObject_CallMethod(poller->watcher, "stop", NULL);
    poller->count = epoll_wait(poller->fd, poller->events, EVENTS, 0);
    poller->next = 0;
    poller->is_running = true;
    while (is_ours(poller) && poller->next < poller->count) { /* a view may fork */
        Watcher *watcher = poller->events[poller->next++].data.ptr;
        if (!watcher)
            continue;
        PyObject *callback = Py_NewRef(watcher->callback), *result = PyObject_CallNoArgs(callback);
        if (!result)
            report(poller, callback);
        Py_XDECREF(result);
        Py_DECREF(callback);
        while (poller->left.session || poller->served_count)
            catch_up(poller);
    }
    poller->is_running = false;
    Py_RETURN_NONE;
}

/* Watchers */

static PyMethodDef poll_method = {"poll", poll, METH_NOARGS, NULL};

/* Have an epoll set of this process, and not of the one that it was forked from. */
static bool open_set(Poller *poller)
{
    if (poller->watcher && is_ours(poller))
        return true;
    if (poller->watcher && !call(poller->watcher, "close"))
        return false;
    Py_CLEAR(poller->watcher);
    if (poller->fd >= 0)
        close(poller->fd);
    poller->active = poller->next = poller->count = 0;
    poller->is_running = false;
    poller->generation = generation;
    poller->fd = epoll_create1(EPOLL_CLOEXEC);
    if (poller->fd < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    else
        poller->watcher = PyObject_CallMethod(poller->loop, "io", "ii", poller->fd, 1);
    return poller->watcher;
}

/* Begin to watch the set. */
static bool start_polling(Poller *poller)
{
    PyObject *method = PyCFunction_New(&poll_method, (PyObject *)poller);
    bool done = call_with(poller->watcher, "start", method);
    Py_XDECREF(method);
    return done;
}

static PyObject *stop_watcher(PyObject *self, PyObject *unused)
{
    Watcher *watcher = (Watcher *)self;
    Poller *poller = (Poller *)watcher->poller;
    bool is_last = !is_ours(poller); /* a child's loop is not to wait for what is its parent's */
    if (!watcher->active)
        Py_RETURN_NONE;
    watcher->active = false;
    Py_CLEAR(watcher->callback);
    if (!is_last && watcher->generation == poller->generation) {
        epoll_ctl(poller->fd, EPOLL_CTL_DEL, watcher->fd, NULL);
        for (int i = poller->next; i < poller->count; i++)
            if (poller->events[i].data.ptr == watcher)
                poller->events[i].data.ptr = NULL;
        is_last = !--poller->active;
    }
    if (is_last && !call(poller->watcher, "stop"))
        PyErr_Clear(); /* the loop is destroyed */
    Py_DECREF(self);
    Py_RETURN_NONE;
}

/* Call back whenever there is something to read. What is active is held by nothing else, perhaps: it holds itself. */
static PyObject *start_watcher(PyObject *self, PyObject *callback)
{
    Watcher *watcher = (Watcher *)self;
    Poller *poller = (Poller *)watcher->poller;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watcher};
    if (watcher->active)
        return PyErr_Format(PyExc_RuntimeError, "start() of a watcher that is active");
    if (!open_set(poller))
        return NULL;
    if (epoll_ctl(poller->fd, EPOLL_CTL_ADD, watcher->fd, &event))
        return PyErr_SetFromErrno(PyExc_OSError);
    if (!poller->active && !start_polling(poller)) {
        epoll_ctl(poller->fd, EPOLL_CTL_DEL, watcher->fd, NULL);
        return NULL;
    }
    poller->active++;
    replace(&watcher->callback, callback);
    watcher->generation = generation;
    watcher->active = true;
    Py_INCREF(self);
    Py_RETURN_NONE;
}

static void close_poller(PyObject *self)
{
    Poller *poller = (Poller *)self;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject_GC_UnTrack(self);
    if (polling == poller)
        polling = NULL;
    if (poller->watcher && !call(poller->watcher, "close"))
        PyErr_Clear();
    if (poller->fd >= 0)
        close(poller->fd);
    PyObject_GC_Track(self);
    Poller_dealloc(self);
    PyErr_Restore(type, value, traceback);
}

/* Return a watcher of this thread's poller, or of the loop where that has none. */
static PyObject *watch(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    int fd = count == 2 ? (int)PyLong_AsLong(args[1]) : -1;
    if (fd < 0)
        return PyErr_Format(PyExc_TypeError, "watch() takes a loop and a descriptor");
    if (!polling || polling->loop != args[0])
        return PyObject_CallMethod(args[0], "io", "ii", fd, 1);
    Watcher *watcher = PyObject_GC_New(Watcher, watcher_type);
    if (watcher) {
        watcher->poller = Py_NewRef((PyObject *)polling);
        watcher->callback = NULL;
        watcher->fd = fd;
        watcher->active = false;
        PyObject_GC_Track(watcher);
    }
    return (PyObject *)watcher;
}

/* Note the hub of this thread; return its poller, which the caller is to hold. None where its loop is not libev's. */
static PyObject *enter(PyObject *module, PyObject *hub)
{
    PyObject *loop = PyObject_GetAttrString(hub, "loop"), *name;
    name = loop ? PyObject_GetAttrString((PyObject *)Py_TYPE(loop), "__module__") : NULL;
    bool is_libev = name && PyUnicode_CompareWithASCIIString(name, "gevent.libev.corecext") == 0;
    Poller *poller = name && is_libev ? PyObject_GC_New(Poller, poller_type) : NULL;
    Py_XDECREF(name);
    if (PyErr_Occurred()) {
        Py_XDECREF(loop);
        return NULL;
    }
    home = hub;
    polling = poller;
    if (!poller) {
        Py_DECREF(loop);
        Py_RETURN_NONE;
    }
    memset(&poller->loop, 0, sizeof *poller - offsetof(Poller, loop));
    poller->loop = loop;
    poller->fd = -1;
    PyObject_GC_Track(poller);
    return (PyObject *)poller;
}

/* Receiving */

static PyMethodDef methods[METHODS];

/* Park the view until there is a message. False with an error, or where Python is to see what there is. */
static bool wait_for_message(WebSocket *websocket, Session *session)
{
    bool is_slow = monotonic() > websocket->turn_ends;
    PyObject *current = get_current();
    Py_XDECREF(current);
    if (!current || current == session->hub || websocket->before_wait != Py_None)
        return false;
    if (Py_TYPE(current) != viewing) {
        if (PyObject_HasAttrString(current, "switch_out"))
            return false;
        replace((PyObject **)&viewing, (PyObject *)Py_TYPE(current));
    }
    while (!PyList_Size(session->queue)) {
        if (connection_of(session)->state != open_state || transport_of(session)->reading != Py_True)
            return false;
        replace(&session->reader, current);
        PyObject *next = Py_NewRef(next_greenlet(session->hub));
        PyObject *result = switch_to(next, NULL, NULL);
        Py_DECREF(next);
        replace(&session->reader, Py_None);
        if (!result)
            return false;
        Py_DECREF(result);
    }
    websocket->turn_ends = is_slow ? 0.0 : transport_of(session)->last_received + geventws_turn;
    return true;
}

/* Return the next message; NULL with an error, or where Python is to look. */
static PyObject *next_message(WebSocket *websocket)
{
    Session *session = session_here(websocket);
    PyObject *message = NULL;
    if (!session || session->reader != Py_None)
        return NULL;
    replace(&((Streak *)websocket->streak)->target, Py_None);
    if (PyList_Size(session->queue) && monotonic() > websocket->turn_ends)
        return NULL; /* its turn has ended */
    Py_INCREF(session);
    if (PyList_Size(session->queue) || wait_for_message(websocket, session)) {
        message = Py_NewRef(PyList_GetItem(session->queue, 0));
        if (PyList_SetSlice(session->queue, 0, 1, NULL) ||
            (!PyList_Size(session->queue) && transport_of(session)->reading != Py_True &&
             !call((PyObject *)session, "go_on_reading")))
            Py_CLEAR(message);
    }
    Py_DECREF(session);
    return message;
}

static PyObject *receive(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *message = count || names ? NULL : next_message((WebSocket *)self);
    if (!message && !PyErr_Occurred())
        return in_python(RECEIVE, self, args, count, names);
    return message;
}

static PyObject *iterate(PyObject *self, PyObject *unused)
{
    PyObject *method = PyObject_GetAttrString(self, "receive");
    Messages *messages = method ? PyObject_GC_New(Messages, messages_type) : NULL;
    if (messages) {
        messages->websocket = Py_NewRef(self);
        messages->calls_receive =
            !PyCFunction_Check(method) || PyCFunction_GetFunction(method) != methods[RECEIVE].ml_meth;
        messages->is_over = false;
        PyObject_GC_Track(messages);
    }
    Py_XDECREF(method);
    return (PyObject *)messages;
}

static PyObject *Messages_next(PyObject *self)
{
    Messages *messages = (Messages *)self;
    WebSocket *websocket = (WebSocket *)messages->websocket;
    bool goes_on = !messages->is_over && websocket->end_told != Py_True;
    PyObject *message = goes_on && !messages->calls_receive ? next_message(websocket) : NULL;
    if (!message && goes_on && !PyErr_Occurred())
        message = PyObject_CallMethod((PyObject *)websocket, "receive", NULL);
    if (message == Py_None)
        Py_CLEAR(message);
    messages->is_over = !message;
    return message;
}

/* Sending */

enum Sent { FAILED = -1, NOT_BEGUN, WHOLE, OTHERWISE }; /* otherwise: Python has to look at the transport */

typedef struct {
    PyObject *message;
    const char *payload;
    Py_ssize_t size;
    char header[10];
    int header_size;
} Frame;

/* Return a new reference to what has the UTF-8 of a text: the text, or bytes. NULL where Python is to say what is wrong.
   A text keeps the UTF-8 that C asks it for, if it is not ASCII: one that is not small is to weigh no more from then on. */
static PyObject *encoded(PyObject *text)
{
    if (PyUnicode_GetLength(text) <= SMALL_TEXT)
        return Py_NewRef(text);
    PyObject *is_ascii = PyObject_CallMethod(text, "isascii", NULL);
    PyObject *bytes = is_ascii == Py_False ? PyUnicode_AsUTF8String(text) : NULL;
    PyObject *either = is_ascii == Py_True ? Py_NewRef(text) : bytes;
    Py_XDECREF(is_ascii);
    return either;
}

/* Return the size from which on messages are compressed. */
static Py_ssize_t threshold_of(Connection *connection)
{
    if (connection->deflate == Py_None)
        return PY_SSIZE_T_MAX;
    PyObject *value = PyObject_GetAttr(connection->deflate, threshold_name);
    Py_ssize_t threshold = value ? PyLong_AsSsize_t(value) : -1;
    Py_XDECREF(value);
    return threshold;
}

/* Fill in the frame of a str or bytes that leaves as it is; false for anything else. It holds its message then. */
static bool make_frame(Frame *frame, Connection *connection, PyObject *message)
{
    char *bytes = NULL;
    Py_ssize_t threshold = threshold_of(connection);
    frame->message = NULL;
    if (PyUnicode_CheckExact(message) && PyUnicode_GetLength(message) < threshold) {
        frame->header[0] = (char)TEXT;
        frame->message = encoded(message);
    } else if (PyBytes_CheckExact(message)) {
        frame->header[0] = (char)BINARY;
        frame->message = Py_NewRef(message);
    }
    if (frame->message && PyBytes_CheckExact(frame->message)) {
        PyBytes_AsStringAndSize(frame->message, &bytes, &frame->size);
        frame->payload = bytes;
    } else
        frame->payload = frame->message ? PyUnicode_AsUTF8AndSize(frame->message, &frame->size) : NULL;
    if (!frame->payload || frame->size >= threshold) {
        PyErr_Clear();
        Py_CLEAR(frame->message);
        return false;
    }
    int width = frame->size < 126 ? 0 : frame->size < 1 << 16 ? 2 : 8;
    frame->header[1] = (char)(width == 0 ? frame->size : width == 2 ? 126 : 127);
    for (int i = 0; i < width; i++)
        frame->header[2 + i] = (char)((uint64_t)frame->size >> 8 * (width - 1 - i));
    frame->header_size = 2 + width;
    return true;
}

/* End the connection, and raise MemoryError. */
static enum Sent give_up(Transport *transport)
{
    PyErr_Clear();
    if (call((PyObject *)transport, "give_up"))
        PyErr_NoMemory();
    return FAILED;
}

/* Say that Python has done a part. Without the memory for that, half a frame may have left. */
static enum Sent put_off(Transport *transport, bool done)
{
    if (done)
        return OTHERWISE;
    return PyErr_ExceptionMatches(PyExc_MemoryError) ? give_up(transport) : FAILED;
}

/* Have a frame wait behind others, whole or not at all. */
static bool gather(Transport *transport, Frame *frame)
{
    Py_ssize_t waiting = PyByteArray_Size(transport->outbox);
    if (PyByteArray_Resize(transport->outbox, waiting + frame->header_size + frame->size))
        return false;
    char *end = PyByteArray_AsString(transport->outbox) + waiting;
    memcpy(end, frame->header, frame->header_size);
    memcpy(end + frame->header_size, frame->payload, frame->size);
    return true;
}

/* Send all that waits. */
static enum Sent send_gathered(Transport *transport)
{
    PyObject *outbox = transport->outbox;
    Py_ssize_t waiting = PyByteArray_Size(outbox);
    ssize_t sent = send(transport->fd, PyByteArray_AsString(outbox), waiting, MSG_NOSIGNAL);
    if (sent < 0) {
        int error = errno;
        if (error != EAGAIN && error != EWOULDBLOCK && error != EINTR)
            return put_off(transport, call_with_error(transport, "_break", error));
        sent = 0;
    }
    transport->bytes_sent += sent;
    if (sent == waiting)
        return PyByteArray_Resize(outbox, 0) ? give_up(transport) : WHOLE;
    replace(&transport->blocked, Py_True); /* what others write until this is noted waits behind it */
    if (PySequence_DelSlice(outbox, 0, sent))
        return give_up(transport);
    return put_off(transport, call((PyObject *)transport, "_block"));
}

/* Keep what the peer did not take of a frame: of bytes without a copy. */
static enum Sent keep_rest(Transport *transport, Frame *frame, Py_ssize_t sent)
{
    replace(&transport->blocked, Py_True); /* as in send_gathered() */
    PyObject *rest = Py_NewRef(frame->message);
    Py_ssize_t start = sent - frame->header_size, left = frame->header_size + frame->size - sent;
    if (start < 0 || !PyBytes_CheckExact(rest)) {
        Py_DECREF(rest);
        rest = PyBytes_FromStringAndSize(NULL, left);
        if (!rest)
            return give_up(transport); /* half a frame has left */
        Py_ssize_t of_header = start < 0 ? -start : 0;
        memcpy(PyBytes_AsString(rest), frame->header + frame->header_size - of_header, of_header);
        memcpy(PyBytes_AsString(rest) + of_header, frame->payload + frame->size - left + of_header, left - of_header);
        start = 0;
    }
    PyObject *result = PyObject_CallMethod((PyObject *)transport, "_keep_rest", "On", rest, start);
    Py_DECREF(rest);
    Py_XDECREF(result);
    return put_off(transport, result != NULL);
}

/* Send a frame before which nothing waits. */
static enum Sent send_now(Transport *transport, Frame *frame)
{
    Py_ssize_t size = frame->header_size + frame->size;
    ssize_t sent;
    if (frame->size <= SMALL) {
        char copy[sizeof frame->header + SMALL];
        memcpy(copy, frame->header, frame->header_size);
        memcpy(copy + frame->header_size, frame->payload, frame->size);
        sent = send(transport->fd, copy, size, MSG_NOSIGNAL);
    } else {
        struct iovec parts[] = {{frame->header, frame->header_size}, {(char *)frame->payload, frame->size}};
        struct msghdr all = {.msg_iov = parts, .msg_iovlen = 2};
        sent = sendmsg(transport->fd, &all, MSG_NOSIGNAL);
    }
    if (sent < 0) {
        int error = errno;
        if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR)
            return NOT_BEGUN;
        return put_off(transport, call_with_error(transport, "_break", error));
    }
    transport->bytes_sent += sent;
    return sent == size ? WHOLE : keep_rest(transport, frame, sent);
}

/* Send a frame now, with what waits, or let it wait for others if more may follow. */
static enum Sent put(Transport *transport, Frame *frame, bool more)
{
    Py_ssize_t waiting = PyByteArray_Size(transport->outbox), size = frame->header_size + frame->size;
    if (transport->blocked != Py_False)
        return NOT_BEGUN;
    more = more && waiting + size < CORK_SIZE;
    if (!waiting && !more)
        return send_now(transport, frame);
    if (size >= CORK_SIZE)
        return NOT_BEGUN;
    if (!gather(transport, frame))
        return give_up(transport);
    if (!more)
        return send_gathered(transport);
    if (transport->corked == Py_True)
        return WHOLE;
    return put_off(transport, call((PyObject *)transport, "_uncork_soon")) == OTHERWISE ? WHOLE : FAILED;
}

static enum Sent put_message(WebSocket *websocket, Session *session, PyObject *message)
{
    Transport *transport = transport_of(session);
    Frame frame;
    if (transport->congested != Py_False || !make_frame(&frame, connection_of(session), message))
        return NOT_BEGUN;
    bool more = PyList_Size(session->queue) || connection_of(session)->limited == Py_True;
    enum Sent sent = put(transport, &frame, more && websocket->turn_ends != 0.0);
    if (sent == WHOLE || (sent == OTHERWISE && transport->broken == Py_False))
        websocket->messages_sent++;
    Py_DECREF(frame.message);
    return sent;
}

static PyObject *send_message(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    WebSocket *websocket = (WebSocket *)self;
    Session *session = count == 1 && !names ? session_here(websocket) : NULL;
    enum Sent sent = session ? put_message(websocket, session, args[0]) : NOT_BEGUN;
    if (sent == NOT_BEGUN)
        return in_python(SEND, self, args, count, names);
    if (sent == FAILED)
        return NULL;
    Streak *streak = (Streak *)websocket->streak;
    if (sent == WHOLE && streak->target != (PyObject *)session) {
        replace(&streak->target, (PyObject *)session);
        streak->until = 0.0;
        Py_RETURN_NONE;
    }
    Py_INCREF(session);
    bool done = call_with(self, "_after_send", (PyObject *)session);
    Py_DECREF(session);
    return done ? Py_NewRef(Py_None) : NULL;
}

static PyObject *post(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    WebSocket *websocket = (WebSocket *)self;
    Session *session = count == 1 && !names ? session_here(websocket) : NULL;
    PyObject *transport = session ? Py_NewRef(session->transport) : NULL;
    enum Sent sent = session ? put_message(websocket, session, args[0]) : NOT_BEGUN;
    bool took = sent == WHOLE || (sent == OTHERWISE && ((Transport *)transport)->broken == Py_False);
    Py_XDECREF(transport);
    if (sent == NOT_BEGUN)
        return in_python(POST, self, args, count, names);
    return sent == FAILED ? NULL : PyBool_FromLong(took);
}

static PyObject *write_bytes(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Transport *transport = (Transport *)self;
    Frame frame = {.message = count == 1 ? args[0] : NULL};
    char *bytes;
    enum Sent sent = NOT_BEGUN;
    bool is_plain = count == 1 && PyBytes_CheckExact(args[0]) && Py_TYPE(self) == transport_type;
    if (is_plain && has_plain_pipe(transport) && (!names || (PyTuple_Size(names) == 1 && PyBool_Check(args[1])))) {
        PyBytes_AsStringAndSize(args[0], &bytes, &frame.size);
        frame.payload = bytes;
        sent = put(transport, &frame, names && args[1] == Py_True);
    }
    if (sent == NOT_BEGUN)
        return in_python(WRITE, self, args, count, names);
    return sent == FAILED ? NULL : Py_NewRef(Py_None);
}

/* Delivering to the members of a room */

typedef struct { /* what all connections get of a batch that compress alike */
    PyObject *frame, *settings;
    Py_ssize_t threshold;
} Made;

typedef struct {
    Lane *lane;
    Batch *batch;
    long long least;    /* that it counts for a member */
    PyObject *keeps_up; /* a pace */
    Turns *share;
    Made plain, compressed; /* since Python looked last */
} Delivery;

static void drop(Made *made)
{
    Py_CLEAR(made->frame);
    Py_CLEAR(made->settings);
}

/* Whether a compressed frame is for this connection as well, whose compressor then has nothing to forget. */
static bool fits(Made *made, Connection *connection)
{
    PyObject *compressor = PyObject_GetAttr(connection->deflate, compressor_name);
    PyObject *settings = compressor == Py_None ? PyObject_GetAttr(connection->deflate, settings_name) : NULL;
    bool is_so = settings && PyObject_RichCompareBool(settings, made->settings, Py_EQ) == 1 &&
                 threshold_of(connection) == made->threshold;
    Py_XDECREF(compressor);
    Py_XDECREF(settings);
    PyErr_Clear();
    return is_so;
}

/* Return the frame for a connection, which the delivery holds; NULL where Python is to make it. */
static PyObject *frame_for(Delivery *delivery, Connection *connection)
{
    PyObject *deflate = connection->deflate;
    Made *made = deflate == Py_None ? &delivery->plain : &delivery->compressed;
    if (made->frame && (deflate == Py_None || fits(made, connection)))
        return made->frame;
    drop(made);
    if (deflate != Py_None) {
        made->settings = PyObject_GetAttr(deflate, settings_name);
        made->threshold = made->settings ? threshold_of(connection) : -1;
    }
    if (!PyErr_Occurred())
        made->frame = PyObject_CallMethod(delivery->batch->prepared, "frame", "O", deflate);
    if (made->frame && PyBytes_CheckExact(made->frame))
        return made->frame;
    PyErr_Clear();
    drop(made);
    return NULL;
}

/* Send the messages of a delivery, as the Python method does. NOT_BEGUN where that is to look. */
static enum Sent deliver(WebSocket *websocket, Delivery *delivery)
{
    Session *session = session_here(websocket);
    bool is_clear = session && transport_of(session)->blocked == Py_False;
    Frame frame = {.message = is_clear ? frame_for(delivery, connection_of(session)) : NULL};
    char *bytes;
    if (!frame.message || session_here(websocket) != session) /* what makes a frame may run anything */
        return NOT_BEGUN;
    PyBytes_AsStringAndSize(frame.message, &bytes, &frame.size);
    frame.payload = bytes;
    enum Sent sent = put(transport_of(session), &frame, false);
    if (sent == OTHERWISE && transport_of(session)->broken != Py_False)
        return NOT_BEGUN;
    if (sent == WHOLE || sent == OTHERWISE)
        websocket->messages_sent += delivery->batch->count;
    return sent;
}

/* Give a place its turn, if only by seeing that it lacks nothing. NOT_BEGUN where that is for Python. */
static enum Sent serve(Place *place, Delivery *delivery)
{
    Lane *lane = delivery->lane;
    Batch *batch = delivery->batch;
    if (place->lane != (PyObject *)lane || place->pace != delivery->keeps_up || place->cursor >= lane->stop)
        return WHOLE;
    if (place->cursor != batch->start || !place->id || !place->ws)
        return NOT_BEGUN;
    Py_ssize_t excluded = PyObject_Size(batch->excluded);
    if (excluded && (excluded < 0 || PySequence_Contains(batch->excluded, place->id))) {
        PyErr_Clear();
        return NOT_BEGUN;
    }
    PyObject *websocket = Py_NewRef(place->ws);
    enum Sent sent = deliver((WebSocket *)websocket, delivery);
    Py_DECREF(websocket);
    if (sent == WHOLE || sent == OTHERWISE) {
        ((Counts *)lane->counts)->delivered += batch->count;
        place->cursor = batch->stop;
        delivery->share->left -= batch->size > delivery->least ? batch->size : delivery->least;
    }
    return sent;
}

/* Serve places until one of them is for Python, and return that; NULL behind the last, or when the pass has done its
   part, or with an error. */
static PyObject *serve_places(Delivery *delivery)
{
    PyObject *places = Py_NewRef(delivery->lane->round), *place = NULL;
    enum Sent sent = WHOLE;
    while ((sent == WHOLE || sent == OTHERWISE) && delivery->share->left > 0 && (place = PyIter_Next(places))) {
        bool is_known = delivery->batch && PyObject_TypeCheck(place, place_fields);
        sent = is_known ? serve((Place *)place, delivery) : NOT_BEGUN;
        if (sent != NOT_BEGUN)
            Py_CLEAR(place);
    }
    Py_DECREF(places);
    drop(&delivery->plain);
    drop(&delivery->compressed);
    return place;
}

static PyObject *next_place(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    bool is_lane = count == 5 && PyObject_TypeCheck(args[0], lane_fields) && PyObject_TypeCheck(args[4], turns_fields);
    Lane *lane = is_lane ? (Lane *)args[0] : NULL;
    if (!lane || !lane->round || !lane->counts || !PyObject_TypeCheck(lane->counts, counts_fields))
        return PyErr_Format(PyExc_TypeError, "next_place() takes a lane, a batch, a weight, a pace and turns");
    Delivery delivery = {.lane = lane, .keeps_up = args[3], .share = (Turns *)args[4]};
    delivery.least = PyLong_AsLongLong(args[2]);
    if (delivery.least == -1 && PyErr_Occurred())
        return NULL;
    Batch *batch = PyObject_TypeCheck(args[1], batch_fields) ? (Batch *)args[1] : NULL;
    /* What is more than a batch is posted by Python, as far as the peer takes it. */
    if (websocket_type && batch && batch->prepared && batch->excluded && batch->stop >= lane->stop)
        delivery.batch = batch;
    PyObject *place = serve_places(&delivery);
    return place || PyErr_Occurred() ? place : Py_NewRef(Py_None);
}

/* What is compiled here */

#define KEYWORDS(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL | METH_KEYWORDS
static PyMethodDef methods[METHODS] = {
    [ON_READABLE] = {"_on_readable", on_readable, METH_NOARGS, "($self)"},
    [WRITE] = {"write", KEYWORDS(write_bytes), "($self, data, *, header=b'', more=False)"},
    [RECEIVE] = {"receive", KEYWORDS(receive), "($self, timeout=None)"},
    [SEND] = {"send", KEYWORDS(send_message), "($self, message, binary=None)"},
    [POST] = {"post", KEYWORDS(post), "($self, message, binary=None)"},
    [ITERATE] = {"__iter__", iterate, METH_NOARGS, "($self)"},
};

/* Have C stand for a method of a type, with its signature and docstring, and keep the Python function. */
static bool stand_for(enum Method method, PyTypeObject *type)
{
    PyMethodDef *definition = &methods[method];
    PyObject *function = PyObject_GetAttrString((PyObject *)type, definition->ml_name);
    PyObject *doc = function ? PyObject_GetAttrString(function, "__doc__") : NULL;
    /* Lives as long as the process, as the definition does. */
    const char *format = doc == Py_None ? "%s%s\n--\n\n" : "%s%s\n--\n\n%S"; /* none: python -OO */
    PyObject *text = doc ? PyUnicode_FromFormat(format, definition->ml_name, definition->ml_doc, doc) : NULL;
    definition->ml_doc = text ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    Py_XDECREF(doc);
    PyObject *descriptor = definition->ml_doc ? PyDescr_NewMethod(type, definition) : NULL;
    general[method] = function;
    bool done = descriptor && !PyObject_SetAttrString((PyObject *)type, definition->ml_name, descriptor);
    Py_XDECREF(descriptor);
    return done;
}

static PyObject *take_over(PyObject *module, PyObject *args)
{
    PyObject *types[6], *state;
    if (websocket_type) /* the package is imported anew: Python does all for its new classes */
        Py_RETURN_NONE;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!O!O", &PyType_Type, &types[0], &PyType_Type, &types[1], &PyType_Type,
                          &types[2], &PyType_Type, &types[3], &PyType_Type, &types[4], &PyType_Type, &types[5], &state))
        return NULL;
    PyObject *sockets = PyImport_ImportModule("_socket");
    socket_type = sockets ? (PyTypeObject *)PyObject_GetAttrString(sockets, "socket") : NULL;
    Py_XDECREF(sockets);
    greenlet_api = PyCapsule_Import("greenlet._C_API", 0);
    if (!socket_type || !greenlet_api)
        return NULL;
    inflate_payload = PyCapsule_Import(INFLATE_CAPSULE, 0);
    PyErr_Clear(); /* it needs zlib.h */
    transport_type = (PyTypeObject *)Py_NewRef(types[1]);
    connection_type = (PyTypeObject *)Py_NewRef(types[2]);
    session_type = (PyTypeObject *)Py_NewRef(types[3]);
    streak_type = (PyTypeObject *)Py_NewRef(types[4]);
    turns_type = (PyTypeObject *)Py_NewRef(types[5]);
    open_state = Py_NewRef(state);
    space = PyUnicode_InternFromString(" ");
    threshold_name = PyUnicode_InternFromString("threshold");
    inflate_frame_name = PyUnicode_InternFromString("inflate_frame");
    settings_name = PyUnicode_InternFromString("settings");
    compressor_name = PyUnicode_InternFromString("_compressor");
    websocket_type = (PyTypeObject *)Py_NewRef(types[0]);
    for (enum Method method = 0; method < METHODS; method++)
        if (!stand_for(method, method <= WRITE ? transport_type : websocket_type))
            return NULL;
    Py_RETURN_NONE;
}

static PyObject *take_back(PyObject *module, PyObject *connection)
{
    if (Py_TYPE(connection) == connection_type && ((Connection *)connection)->piece)
        return hand_back((Connection *)connection, "", 0);
    return PyBytes_FromStringAndSize(NULL, 0);
}

static PyObject *let_go(PyObject *module, PyObject *connection)
{
    if (Py_TYPE(connection) == connection_type) {
        ((Connection *)connection)->piece_size = 0;
        Py_CLEAR(((Connection *)connection)->piece);
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {{"take_over", take_over, METH_VARARGS, NULL},
                                  {"enter", enter, METH_O, NULL},
                                  {"watch", (PyCFunction)(void (*)(void))watch, METH_FASTCALL, NULL},
                                  {"take_back", take_back, METH_O, NULL},
                                  {"let_go", let_go, METH_O, NULL},
                                  {"next_place", (PyCFunction)(void (*)(void))next_place, METH_FASTCALL, NULL},
                                  {NULL}};

static bool add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject **to)
{
    PyObject *type = PyType_FromSpec(spec);
    if (to)
        *to = (PyTypeObject *)type;
    return type && !PyModule_AddObjectRef(module, name, type);
}

#define BASE(Type, list, to)                                                                                           \
    PyType_Slot Type##_slots[] = {{Py_tp_traverse, Type##_traverse},                                                   \
                                  {Py_tp_clear, Type##_clear},                                                         \
                                  {Py_tp_dealloc, Type##_dealloc},                                                     \
                                  {Py_tp_members, list},                                                               \
                                  {0, NULL}};                                                                          \
    PyType_Spec Type##_spec = {.name = "geventws._fast." #Type "Fields",                                               \
                               .basicsize = sizeof(Type),                                                              \
                               .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,                 \
                               .slots = Type##_slots};                                                                 \
    if (!add_type(module, #Type "Fields", &Type##_spec, to))                                                           \
        return -1;

static int fill(PyObject *module)
{
    BASE(Transport, transport_members, NULL)
    BASE(Connection, connection_members, NULL)
    BASE(Session, session_members, NULL)
    BASE(WebSocket, websocket_members, NULL)
    BASE(Streak, streak_members, NULL)
    BASE(Turns, turns_members, &turns_fields)
    BASE(Lane, lane_members, &lane_fields)
    BASE(Place, place_members, &place_fields)
    BASE(Batch, batch_members, &batch_fields)
    PyType_Slot counts_slots[] = {{Py_tp_members, counts_members}, {0, NULL}};
    PyType_Spec counts_spec = {"geventws._fast.CountsFields", sizeof(Counts), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, counts_slots};
    if (!add_type(module, "CountsFields", &counts_spec, &counts_fields))
        return -1;
    unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    static PyMethodDef watcher_methods[] = {{"start", start_watcher, METH_O, NULL},
                                            {"stop", stop_watcher, METH_NOARGS, NULL},
                                            {"close", stop_watcher, METH_NOARGS, NULL},
                                            {NULL}};
    static PyMemberDef watcher_members[] = {{"active", T_BOOL, offsetof(Watcher, active), READONLY, NULL}, {NULL}};
    PyType_Slot watcher_slots[] = {{Py_tp_traverse, Watcher_traverse}, {Py_tp_clear, Watcher_clear},
                                   {Py_tp_dealloc, Watcher_dealloc},   {Py_tp_methods, watcher_methods},
                                   {Py_tp_members, watcher_members},   {0, NULL}};
    PyType_Spec watcher_spec = {"geventws._fast.Watcher", sizeof(Watcher), 0, flags, watcher_slots};
    PyType_Slot poller_slots[] = {{Py_tp_traverse, Poller_traverse},
                                  {Py_tp_clear, Poller_clear},
                                  {Py_tp_dealloc, close_poller},
                                  {0, NULL}};
    PyType_Spec poller_spec = {"geventws._fast.Poller", sizeof(Poller), 0, flags, poller_slots};
    if (!add_type(module, "Watcher", &watcher_spec, &watcher_type) ||
        !add_type(module, "Poller", &poller_spec, &poller_type))
        return -1;
    PyType_Slot slots[] = {{Py_tp_traverse, Messages_traverse}, {Py_tp_clear, Messages_clear},
                           {Py_tp_dealloc, Messages_dealloc},   {Py_tp_iter, PyObject_SelfIter},
                           {Py_tp_iternext, Messages_next},     {0, NULL}};
    PyType_Spec spec = {"geventws._fast.Messages", sizeof(Messages), 0, flags, slots};
    if (!add_type(module, "Messages", &spec, &messages_type))
        return -1;
    return PyModule_AddIntConstant(module, "EDITION", EDITION);
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_fast", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__fast(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && (fill(module) || pthread_atfork(NULL, NULL, note_fork)))
        Py_CLEAR(module);
    return module;
}
