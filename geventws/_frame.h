/* What the extension modules share of frames. Source: RFC 6455 §5.2, §5.3. */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { MASKED = 0x80, LENGTH = 0x7f };

/* How _fast.c finds the function of _inflate.c, and for how many bytes that wants room. */
#define INFLATE_CAPSULE "geventws._inflate.inflate_payload"
enum { INFLATED = 8192 };
typedef Py_ssize_t Inflate(const char *frame, Py_ssize_t available, Py_ssize_t most, char *inflated, Py_ssize_t *stop);

/* Combine size bytes with the key by XOR, from its byte `turn` on; to and from are the same or do not overlap. Return
   whether all of them are ASCII then. */
static inline bool combine(char *to, const char *from, Py_ssize_t size, const char *key, Py_ssize_t turn)
{
    char turned[8]; /* the key twice */
    uint64_t keys, octets, seen = 0;
    Py_ssize_t i = 0;
    for (int k = 0; k < 8; k++)
        turned[k] = key[(turn + k) % 4];
    memcpy(&keys, turned, 8);
    for (; i + 8 <= size; i += 8) { /* the compiler makes SIMD of it */
        memcpy(&octets, from + i, 8);
        octets ^= keys;
        seen |= octets;
        memcpy(to + i, &octets, 8);
    }
    for (; i < size; i++) {
        to[i] = from[i] ^ turned[i % 4];
        seen |= (unsigned char)to[i];
    }
    return !(seen & 0x8080808080808080);
}

/* Return how many bytes of payload a frame has, and where they begin, behind their key. -1 for a frame whose header is
   not all here, is not masked, or has its length in more bytes than it needs. */
static inline Py_ssize_t payload_size(const char *frame, Py_ssize_t available, Py_ssize_t *begin)
{
    const unsigned char *octets = (const unsigned char *)frame;
    if (available < 6 || !(octets[1] & MASKED))
        return -1;
    uint64_t size = octets[1] & LENGTH;
    int width = size < 126 ? 0 : size == 126 ? 2 : 8;
    *begin = 2 + width + 4;
    if (available < *begin)
        return -1;
    if (!width)
        return (Py_ssize_t)size;
    size = 0;
    for (int i = 0; i < width; i++)
        size = size << 8 | octets[2 + i];
    return size < (width == 2 ? 126 : 1 << 16) || size > PY_SSIZE_T_MAX ? -1 : (Py_ssize_t)size;
}
