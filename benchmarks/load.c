/* WebSocket echo load: keeps messages in flight on many connections and times their way back.

   Knows RFC 6455 from the client's side: the opening handshake, masked frames out, unmasked frames in. In raw mode it
   speaks no WebSocket: the same masked frames go out, and the same bytes must come back. Prints one JSON object; a reply
   that is not the echo, or no reply at all, ends it with a line on stderr and exit status 1. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    VARIANTS = 4,           /* different messages, sent in turn, so that a reordered or repeated echo is seen */
    SAMPLE = 16,            /* of long messages every 16th is compared whole, of the others the header */
    LONG = 4096,            /* bytes of payload from which a message is long */
    SCRATCH = 1 << 18,      /* bytes read at once */
    EVENTS = 256,
    PATIENCE = 10,          /* seconds without an echo, or without an answer to the handshake */
    PING = 0x89,
    BUCKETS = 64 * 60,
};

struct connection {
    int fd;
    bool waits_to_write;
    uint64_t sent;          /* bytes of the endless stream of frames that the kernel took */
    uint64_t echoed;        /* messages that came back whole */
    size_t position;        /* bytes of the current reply that came */
    bool ping_begun;        /* the next byte is the length of a Ping */
    size_t ping_left;
    uint64_t *sent_at;      /* ns; message n at n % in_flight */
};

static int in_flight;
static bool raw;
static size_t payload_size, frame_size, reply_size, reply_header_size;
static uint8_t *frames;                 /* VARIANTS + in_flight frames in turn: any in_flight of them in one piece */
static uint8_t *replies[VARIANTS];
static uint8_t scratch[SCRATCH];

static bool measuring, stopping;
static uint64_t messages, slowest, histogram[BUCKETS];

static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        fail("out of memory");
    return memory;
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* RFC 6455 §5.2: FIN and opcode, mask bit and length, in the fewest bytes. */
static size_t frame_header(uint8_t *header, int opcode, bool masked)
{
    uint8_t mask_bit = masked ? 0x80 : 0;
    header[0] = 0x80 | opcode;
    if (payload_size < 126) {
        header[1] = mask_bit | payload_size;
        return 2;
    }
    size_t length_bytes = payload_size < 65536 ? 2 : 8;
    header[1] = mask_bit | (length_bytes == 2 ? 126 : 127);
    for (size_t i = 0; i < length_bytes; i++)
        header[2 + i] = (uint64_t)payload_size >> 8 * (length_bytes - 1 - i);
    return 2 + length_bytes;
}

static void build_frames(int opcode)
{
    uint8_t header[10];
    size_t frame_header_size = frame_header(header, opcode, true);
    frame_size = frame_header_size + 4 + payload_size;
    frames = allocate(VARIANTS + in_flight, frame_size);
    for (int n = 0; n < VARIANTS + in_flight; n++) {
        uint8_t *frame = frames + n * frame_size, *key = frame + frame_header_size, *payload = key + 4;
        memcpy(frame, header, frame_header_size);
        for (int i = 0; i < 4; i++)
            key[i] = 0x9d + 67 * i + 29 * (n % VARIANTS);
        for (size_t i = 0; i < payload_size; i++)
            payload[i] = ('a' + (i * 7 + n % VARIANTS) % 26) ^ key[i % 4];
    }

    reply_header_size = raw ? 0 : frame_header(header, opcode, false);
    reply_size = raw ? frame_size : reply_header_size + payload_size;
    for (int n = 0; n < VARIANTS; n++) {
        uint8_t *frame = frames + n * frame_size, *key = frame + frame_header_size, *payload = key + 4;
        replies[n] = frame;
        if (raw)
            continue;
        replies[n] = allocate(1, reply_size);
        memcpy(replies[n], header, reply_header_size);
        for (size_t i = 0; i < payload_size; i++)
            replies[n][reply_header_size + i] = payload[i] ^ key[i % 4];
    }
}

/* 64 buckets for each power of two: within 1.6 % of the true value. */
static unsigned bucket_of(uint64_t value)
{
    if (value < 128)
        return value;
    int shift = 57 - __builtin_clzll(value);
    return shift * 64 + (value >> shift);
}

static double microseconds_at(double quantile)
{
    uint64_t wanted = messages * quantile, seen = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram[bucket];
        if (seen > wanted)
            return (bucket < 128 ? bucket : (bucket % 64 + 64.5) * (1ull << (bucket / 64 - 1))) / 1e3;
    }
    return slowest / 1e3;
}

/* RFC 6455 §4.1; the key and its answer are those of §1.3. */
static void shake_hands(int fd, int port)
{
    char request[256], response[4096];
    int size = snprintf(request, sizeof request,
                        "GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", port);
    if (send(fd, request, size, MSG_NOSIGNAL) != size)
        fail("handshake: cannot send: %s", strerror(errno));
    char *end = NULL;
    for (size = 0; !end; end = strstr(response, "\r\n\r\n")) {
        ssize_t got = recv(fd, response + size, sizeof response - 1 - size, 0);
        if (got <= 0)
            fail("handshake: %s", got ? strerror(errno) : "connection closed");
        size += got;
        response[size] = 0;
    }
    if (strncmp(response, "HTTP/1.1 101 ", 13))
        fail("handshake refused: %.*s", (int)strcspn(response, "\r"), response);
    const char *accept = strcasestr(response, "\nsec-websocket-accept:");
    if (!accept || strncmp(accept + 22 + strspn(accept + 22, " "), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r", 29))
        fail("handshake: not the Sec-WebSocket-Accept of its key");
    if (strcasestr(response, "\nsec-websocket-extensions:"))
        fail("handshake: an extension that was not offered");
    if (end + 4 != response + size)
        fail("handshake: bytes after it that nobody asked for");
}

static int open_connection(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {.tv_sec = PATIENCE};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (!raw)
        shake_hands(fd, port);
    return fd;
}

/* Messages that left, or began to. */
static uint64_t messages_begun(const struct connection *connection)
{
    return (connection->sent + frame_size - 1) / frame_size;
}

/* Send what may be in flight and is not yet; what the kernel does not take waits for EPOLLOUT. */
static void write_frames(int epoll, struct connection *connection)
{
    uint64_t may_be_sent = (stopping ? messages_begun(connection) : connection->echoed + in_flight) * frame_size;
    size_t size = may_be_sent - connection->sent;
    if (size) {
        uint8_t *from = frames + connection->sent % (VARIANTS * frame_size);
        ssize_t sent = send(connection->fd, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            fail("send: %s", strerror(errno));
        connection->sent += sent > 0 ? sent : 0;
    }
    bool waits = connection->sent < may_be_sent;
    if (waits != connection->waits_to_write) {
        struct epoll_event event = {.events = waits ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = connection};
        epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
        connection->waits_to_write = waits;
    }
}

static void count_echo(struct connection *connection, uint64_t now)
{
    /* The message that now may leave, echoed + in_flight, has the same place in sent_at. */
    uint64_t *sent_at = &connection->sent_at[connection->echoed++ % in_flight];
    if (measuring) {
        uint64_t latency = now - *sent_at;
        messages++;
        histogram[bucket_of(latency)]++;
        if (latency > slowest)
            slowest = latency;
    }
    *sent_at = now;
}

/* Between two replies a keepalive Ping may come: it is passed over, for the run ends before a Pong is missed. */
static bool in_ping(struct connection *connection, const uint8_t **bytes, size_t *size)
{
    if (!connection->ping_begun && !connection->ping_left) {
        if (raw || connection->position || **bytes != PING)
            return false;
        connection->ping_begun = true;
        ++*bytes, --*size;
        return true;
    }
    if (connection->ping_begun) {
        connection->ping_left = **bytes;
        if (connection->ping_left > 125)
            fail("a Ping with length byte 0x%02x", **bytes);
        connection->ping_begun = false;
        ++*bytes, --*size;
        return true;
    }
    size_t part = *size < connection->ping_left ? *size : connection->ping_left;
    connection->ping_left -= part;
    *bytes += part, *size -= part;
    return true;
}

static void take_bytes(struct connection *connection, const uint8_t *bytes, size_t size, uint64_t now)
{
    while (size) {
        if (in_ping(connection, &bytes, &size))
            continue;
        const uint8_t *expected = replies[connection->echoed % VARIANTS] + connection->position;
        size_t part = reply_size - connection->position, compared;
        if (part > size)
            part = size;
        compared = part;
        if (payload_size >= LONG && connection->echoed % SAMPLE)
            compared = connection->position < reply_header_size ? reply_header_size - connection->position : 0;
        if (compared > part)
            compared = part;
        if (memcmp(bytes, expected, compared)) {
            size_t at = 0;
            while (bytes[at] == expected[at])
                at++;
            fail("message %" PRIu64 " is not echoed: byte %zu of the reply is 0x%02x, not 0x%02x",
                 connection->echoed, connection->position + at, bytes[at], expected[at]);
        }
        bytes += part, size -= part, connection->position += part;
        if (connection->position == reply_size) {
            connection->position = 0;
            count_echo(connection, now);
        }
    }
}

/* RFC 6455 §7.1.1: a Close, and then the server ends the connection. */
static void close_connection(int fd)
{
    static const uint8_t close_1000[] = {0x88, 0x82, 0, 0, 0, 0, 1000 >> 8, 1000 & 0xff};
    if (!raw && send(fd, close_1000, sizeof close_1000, MSG_NOSIGNAL) == sizeof close_1000)
        recv(fd, scratch, SCRATCH, 0);
    close(fd);
}

static void print_result(const struct connection *connections, int count, double seconds, double cpu)
{
    uint64_t fewest = UINT64_MAX, most = 0, in_all = 0;
    for (int i = 0; i < count; i++) {
        in_all += connections[i].echoed;
        fewest = connections[i].echoed < fewest ? connections[i].echoed : fewest;
        most = connections[i].echoed > most ? connections[i].echoed : most;
    }
    printf("{\"messages\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"seconds\": %.6f, ",
           messages, messages * payload_size, seconds);
    printf("\"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f, \"load_cpu\": %.3f, ",
           microseconds_at(0.50), microseconds_at(0.99), slowest / 1e3, cpu / seconds);
    printf("\"messages_in_all\": %" PRIu64 ", \"fewest_on_a_connection\": %" PRIu64
           ", \"most_on_a_connection\": %" PRIu64 "}\n", in_all, fewest, most);
}

/* One wake-up: every reply that is there is taken, and what may leave leaves. Returns the time. */
static uint64_t serve_events(int epoll)
{
    static uint64_t last_echo;
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(epoll, events, EVENTS, 100);
    uint64_t now = nanoseconds(CLOCK_MONOTONIC);
    if (last_echo && now - last_echo > PATIENCE * 1000000000ull)
        fail("no echo for %d s", PATIENCE);
    for (int i = 0; i < ready; i++) {
        struct connection *connection = events[i].data.ptr;
        if (events[i].events & ~EPOLLOUT) {
            ssize_t got = recv(connection->fd, scratch, SCRATCH, MSG_DONTWAIT);
            if (got <= 0)
                fail("message %" PRIu64 " is not echoed: %s", connection->echoed,
                     got ? strerror(errno) : "connection closed");
            now = nanoseconds(CLOCK_MONOTONIC);
            take_bytes(connection, scratch, got, now);
        }
        write_frames(epoll, connection);
    }
    if (ready || !last_echo)
        last_echo = now;
    return now;
}

static bool all_echoed(const struct connection *connections, int count)
{
    for (int i = 0; i < count; i++)
        if (connections[i].echoed < messages_begun(&connections[i]))
            return false;
    return true;
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        fputs("usage: load PORT CONNECTIONS IN_FLIGHT BYTES text|binary websocket|raw WARM_UP SECONDS\n", stderr);
        return 2;
    }
    int port = atoi(argv[1]), count = atoi(argv[2]);
    in_flight = atoi(argv[3]);
    payload_size = strtoul(argv[4], NULL, 10);
    raw = !strcmp(argv[6], "raw");
    build_frames(strcmp(argv[5], "text") ? 2 : 1);

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *connections = allocate(count, sizeof *connections);
    for (int i = 0; i < count; i++) {
        connections[i].fd = open_connection(port);
        connections[i].sent_at = allocate(in_flight, sizeof *connections[i].sent_at);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event);
    }

    uint64_t now = nanoseconds(CLOCK_MONOTONIC);
    uint64_t begin = now + (uint64_t)(atof(argv[7]) * 1e9), end = begin + (uint64_t)(atof(argv[8]) * 1e9);
    for (int i = 0; i < count; i++) {
        for (int n = 0; n < in_flight; n++)
            connections[i].sent_at[n] = now;
        write_frames(epoll, &connections[i]);
    }
    while (now < begin)
        now = serve_events(epoll);
    measuring = true;
    begin = now;
    double cpu = cpu_seconds();
    while (now < end)
        now = serve_events(epoll);
    cpu = cpu_seconds() - cpu;
    measuring = false;

    /* Every message sent must come back, the last ones too, and the server is left with nothing to do. */
    stopping = true;
    while (!all_echoed(connections, count))
        serve_events(epoll);
    for (int i = 0; i < count; i++)
        close_connection(connections[i].fd);
    print_result(connections, count, (now - begin) / 1e9, cpu);
    return 0;
}
