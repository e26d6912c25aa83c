/* The load of the echo benchmark: keeps messages in flight on open connections and times their way back.

   load IN_FLIGHT WARM_UP SECONDS FD...: the connections are open files that it inherits, all ready for the first message.
   On stdin it gets the messages: for each the size of its frames and of their echo, 4 bytes each, and the bytes of both.
   They are sent in turn, and their echoes must come back in turn, byte for byte; of WebSocket it knows only that a
   keepalive Ping may come between two echoes. Each connection begins at another message, or a server would compress one
   many times in a row, which takes half the time. Prints one JSON object; anything else than the echo, or nothing, ends it with
   a line on stderr and exit status 1. */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

enum {
    MOST_VARIANTS = 64,     /* different messages, so that a reordered or repeated echo is seen */
    SAMPLE = 17,            /* of long echoes every 17th is compared whole, which is each variant in turn */
    LONG = 4096,            /* bytes from which an echo is long */
    BEGINNING = 16,         /* bytes of every echo that are compared */
    SCRATCH = 1 << 18,      /* bytes read at once */
    EVENTS = 256,
    PATIENCE = 10,          /* seconds without an echo */
    PING = 0x89,
    BUCKETS = 64 * 60,
};

struct connection {
    int fd;
    bool waits_to_write;
    uint64_t first;         /* message with which it begins; those before count as sent and echoed */
    uint64_t sent;          /* bytes of the endless stream of messages that the kernel took */
    uint64_t echoed;        /* messages that came back whole */
    size_t position;        /* bytes of the current echo that came */
    bool ping_begun;        /* the next byte is the length of a Ping */
    size_t ping_left;
    uint64_t *sent_at;      /* ns; message n at n % in_flight */
};

static int in_flight, variants;
static uint8_t *stream;                     /* the messages in turn: any in_flight of them in one piece */
static size_t starts[MOST_VARIANTS + 1];    /* of each variant in the stream, and where the first comes again */
static size_t echo_sizes[MOST_VARIANTS];
static uint8_t *echoes[MOST_VARIANTS];
static uint8_t scratch[SCRATCH];

static bool pings_may_come, measuring, stopping;
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

static uint64_t nanoseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static uint8_t *read_bytes(size_t size)
{
    uint8_t *bytes = allocate(1, size);
    if (fread(bytes, 1, size, stdin) != size)
        fail("a message is cut short");
    return bytes;
}

static void read_messages(void)
{
    uint32_t sizes[2];
    uint8_t *frames[MOST_VARIANTS];
    size_t frames_size[MOST_VARIANTS], room = 0, filled = 0;
    for (; variants < MOST_VARIANTS && fread(sizes, sizeof sizes, 1, stdin); variants++) {
        frames[variants] = read_bytes(frames_size[variants] = sizes[0]);
        echoes[variants] = read_bytes(echo_sizes[variants] = sizes[1]);
        starts[variants + 1] = starts[variants] + sizes[0];
    }
    if (!variants)
        fail("no messages");
    for (int n = 0; n < variants + in_flight; n++)
        room += frames_size[n % variants];
    stream = allocate(1, room);
    for (int n = 0; n < variants + in_flight; n++) {
        memcpy(stream + filled, frames[n % variants], frames_size[n % variants]);
        filled += frames_size[n % variants];
    }
    /* Raw bytes come back masked and may begin with anything; a WebSocket server's frame has no mask. */
    pings_may_come = !(echoes[0][1] & 0x80);
}

/* Where a message begins in the endless stream. */
static uint64_t position_of(uint64_t message)
{
    return message / variants * starts[variants] + starts[message % variants];
}

/* Messages that left, or began to. */
static uint64_t messages_begun(const struct connection *connection)
{
    uint64_t begun = connection->sent / starts[variants] * variants;
    for (size_t rest = connection->sent % starts[variants], n = 0; starts[n] < rest; n++)
        begun++;
    return begun;
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

/* Send what may be in flight and is not yet; what the kernel does not take waits for EPOLLOUT. */
static void write_messages(int epoll, struct connection *connection)
{
    uint64_t may_begin = stopping ? messages_begun(connection) : connection->echoed + in_flight;
    uint64_t may_be_sent = position_of(may_begin);
    size_t size = may_be_sent - connection->sent;
    if (size) {
        uint8_t *from = stream + connection->sent % starts[variants];
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

/* Between two echoes a keepalive Ping may come: it is passed over, for the run ends before a Pong is missed. */
static bool in_ping(struct connection *connection, const uint8_t **bytes, size_t *size)
{
    if (!connection->ping_begun && !connection->ping_left) {
        if (!pings_may_come || connection->position || **bytes != PING)
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
        int variant = connection->echoed % variants;
        const uint8_t *expected = echoes[variant] + connection->position;
        size_t part = echo_sizes[variant] - connection->position, compared;
        if (part > size)
            part = size;
        compared = part;
        if (echo_sizes[variant] >= LONG && connection->echoed % SAMPLE)
            compared = connection->position < BEGINNING ? BEGINNING - connection->position : 0;
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
        if (connection->position == echo_sizes[variant]) {
            connection->position = 0;
            count_echo(connection, now);
        }
    }
}

static void print_result(const struct connection *connections, int count, double seconds, double cpu)
{
    uint64_t fewest = UINT64_MAX, most = 0, in_all = 0;
    for (int i = 0; i < count; i++) {
        uint64_t echoed = connections[i].echoed - connections[i].first;
        in_all += echoed;
        fewest = echoed < fewest ? echoed : fewest;
        most = echoed > most ? echoed : most;
    }
    printf("{\"messages\": %" PRIu64 ", \"seconds\": %.6f, ", messages, seconds);
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
    uint64_t now = nanoseconds();
    if (last_echo && now - last_echo > PATIENCE * 1000000000ull)
        fail("no echo for %d s", PATIENCE);
    for (int i = 0; i < ready; i++) {
        struct connection *connection = events[i].data.ptr;
        if (events[i].events & ~EPOLLOUT) {
            ssize_t got = recv(connection->fd, scratch, SCRATCH, MSG_DONTWAIT);
            if (got <= 0)
                fail("message %" PRIu64 " is not echoed: %s", connection->echoed,
                     got ? strerror(errno) : "connection closed");
            now = nanoseconds();
            take_bytes(connection, scratch, got, now);
        }
        write_messages(epoll, connection);
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
    if (argc < 5) {
        fputs("usage: load IN_FLIGHT WARM_UP SECONDS FD...\n", stderr);
        return 2;
    }
    int count = argc - 4;
    in_flight = atoi(argv[1]);
    read_messages();

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *connections = allocate(count, sizeof *connections);
    for (int i = 0; i < count; i++) {
        connections[i].fd = atoi(argv[4 + i]);
        connections[i].first = connections[i].echoed = i % variants;
        connections[i].sent = starts[i % variants];
        connections[i].sent_at = allocate(in_flight, sizeof *connections[i].sent_at);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event))
            fail("file %d: %s", connections[i].fd, strerror(errno));
    }

    uint64_t now = nanoseconds();
    uint64_t begin = now + (uint64_t)(atof(argv[2]) * 1e9);
    for (int i = 0; i < count; i++) {
        for (int n = 0; n < in_flight; n++)
            connections[i].sent_at[n] = now;
        write_messages(epoll, &connections[i]);
    }
    while (now < begin)
        now = serve_events(epoll);
    measuring = true;
    begin = now;
    uint64_t end = begin + (uint64_t)(atof(argv[3]) * 1e9);
    double cpu = cpu_seconds();
    while (now < end || !messages)
        now = serve_events(epoll);
    cpu = cpu_seconds() - cpu;
    measuring = false;

    /* Every message sent must come back, the last ones too, and the server is left with nothing to do. */
    stopping = true;
    while (!all_echoed(connections, count))
        serve_events(epoll);
    print_result(connections, count, (now - begin) / 1e9, cpu);
    return 0;
}
