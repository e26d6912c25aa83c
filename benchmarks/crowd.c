/* A crowd of WebSocket clients: each connects, has one message echoed, and then stays idle or leaves.

   Idle, it prints "ready" once all are there, and answers Pings until its stdin ends. Visiting, so many are there at a
   time; each ends its visit with the closing handshake, and the next one comes. It prints one JSON object in the end.

   Knows RFC 6455 from the client's side; in raw mode it speaks no WebSocket, and the frame must come back as it went.
   What is not as it must be, a lost connection too, ends the program with a line on stderr and exit status 1. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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
    PAYLOAD = 64,               /* bytes of text that are echoed */
    FRAME = 6 + PAYLOAD,
    REPLY = 2 + PAYLOAD,
    ROOM = 1024,                /* bytes of a response to the handshake */
    ARRIVING = 32,              /* connections on their way at a time while an idle crowd gathers */
    FROM_EACH_ADDRESS = 5000,   /* idle connections, of some 28,000 ports */
    ADDRESSES = 16,             /* that visitors come from in turn */
    EVENTS = 256,
    PATIENCE = 30,              /* seconds for any step of a visit */
};

enum step { CONNECTING, SHAKING_HANDS, ECHOING, STAYING, CLOSING, LEAVING, GONE };
static const char *const during[] = {"the connect", "the handshake", "the echo", "its idle time", "the close", "the end"};

struct client {
    int fd;
    enum step step;
    uint64_t came_at, stepped_at;   /* ns */
    size_t size;                    /* bytes of an answer that is not whole yet */
    char *bytes;
};

static struct sockaddr_in server;
static bool raw, stays;
static int epoll, open_clients;
static unsigned number;             /* of the next client, for its address */
static uint64_t now, pings, visits, measured, *visit_times;
static size_t room_for_times;
static bool measuring, stopping;
static char request[256], scratch[65536];
static uint8_t frame[FRAME], reply[FRAME];
static size_t request_size, reply_size;

static const uint8_t close_1000[] = {0x88, 0x82, 0, 0, 0, 0, 1000 >> 8, 1000 & 0xff};

static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("crowd: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *allocate(void *memory, size_t count, size_t size)
{
    memory = reallocarray(memory, count, size);
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

static void write_whole(struct client *client, const void *bytes, size_t size)
{
    if (send(client->fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("cannot send: %s", strerror(errno));
}

/* RFC 6455 §4.1 and §5.2; the key is that of §1.3. */
static void prepare_messages(int port)
{
    request_size = snprintf(request, sizeof request,
                            "GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", port);
    static const uint8_t header[] = {0x81, 0x80 | PAYLOAD, 0x37, 0xfa, 0x21, 0x3d};
    memcpy(frame, header, sizeof header);
    for (int i = 0; i < PAYLOAD; i++)
        frame[6 + i] = ('a' + i % 26) ^ header[2 + i % 4];
    reply_size = raw ? FRAME : REPLY;
    memcpy(reply, frame, FRAME);
    if (raw)
        return;
    reply[1] = PAYLOAD;
    for (int i = 0; i < PAYLOAD; i++)
        reply[2 + i] = 'a' + i % 26;
}

static void come(struct client *client)
{
    unsigned last = 1 + (stays ? number / FROM_EACH_ADDRESS : number % ADDRESSES), on = 1;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + last - 1)};
    number++;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->fd < 0)
        fail("cannot open a socket: %s", strerror(errno));
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(client->fd, (struct sockaddr *)&own, sizeof own))
        fail("cannot bind: %s", strerror(errno));
    if (connect(client->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
        fail("cannot connect: %s", strerror(errno));
    client->step = CONNECTING;
    client->size = 0;
    client->came_at = client->stepped_at = nanoseconds();
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = client};
    epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event);
    open_clients++;
}

static void step_to(struct client *client, enum step step)
{
    client->step = step;
    client->stepped_at = now;
    client->size = 0;
}

static void begin(struct client *client)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        fail("cannot connect: %s", strerror(error));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    epoll_ctl(epoll, EPOLL_CTL_MOD, client->fd, &event);
    if (raw) {
        step_to(client, ECHOING);
        write_whole(client, frame, FRAME);
    } else {
        step_to(client, SHAKING_HANDS);
        write_whole(client, request, request_size);
    }
}

static void check_response(struct client *client, const char *response, size_t size)
{
    const char *end = memmem(response, size, "\r\n\r\n", 4);
    if (!end && size < ROOM)
        return;
    if (strncmp(response, "HTTP/1.1 101 ", 13))
        fail("handshake refused: %.*s", (int)strcspn(response, "\r"), response);
    const char *accept = strcasestr(response, "\nsec-websocket-accept:");
    if (!accept || strncmp(accept + 22 + strspn(accept + 22, " "), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r", 29))
        fail("handshake: not the Sec-WebSocket-Accept of its key");
    if (end + 4 != response + size)
        fail("handshake: bytes after it that nobody asked for");
    step_to(client, ECHOING);
    write_whole(client, frame, FRAME);
}

static void check_echo(struct client *client, const char *bytes, size_t size)
{
    if (size > reply_size || memcmp(bytes, reply, size))
        fail("a reply that is not the echo");
    if (size < reply_size)
        return;
    if (stays) {
        step_to(client, STAYING);
        free(client->bytes);
        client->bytes = NULL;
        visits++;
    } else if (raw) {
        step_to(client, LEAVING);
        shutdown(client->fd, SHUT_WR);
    } else {
        step_to(client, CLOSING);
        write_whole(client, close_1000, sizeof close_1000);
    }
}

/* Not every server echoes the code, as RFC 6455 §5.5.1 says that it typically does. */
static void check_close(struct client *client, const uint8_t *bytes, size_t size)
{
    if (bytes[0] != 0x88)
        fail("0x%02x instead of a Close", bytes[0]);
    if (size > 1 && (bytes[1] > 125 || size > 2u + bytes[1]))
        fail("a Close of %d bytes in %zu", bytes[1], size);
    if (size > 1 && size == 2u + bytes[1])
        step_to(client, LEAVING);
}

/* Frames here are small and few: one that does not come in one piece is taken for wrong. */
static void answer_pings(struct client *client, const uint8_t *bytes, size_t size)
{
    while (size) {
        size_t length = size > 1 ? bytes[1] : 0;
        if (bytes[0] != 0x89 || length > 125 || size < 2 + length)
            fail("%zu bytes that nobody asked for, from 0x%02x on", size, bytes[0]);
        uint8_t pong[6 + 125] = {0x8a, 0x80 | length};
        memcpy(pong + 6, bytes + 2, length);
        write_whole(client, pong, 6 + length);
        bytes += 2 + length, size -= 2 + length, pings++;
    }
}

static void leave(struct client *client)
{
    close(client->fd);
    open_clients--;
    client->step = GONE;
    visits++;
    if (measuring) {
        if (measured == room_for_times) {
            room_for_times = room_for_times ? 2 * room_for_times : 65536;
            visit_times = allocate(visit_times, room_for_times, sizeof *visit_times);
        }
        visit_times[measured++] = now - client->came_at;
    }
    if (!stopping)
        come(client);
}

static void end_of_stream(struct client *client, const char *reason)
{
    if (client->step != LEAVING)
        fail("connection lost during %s: %s", during[client->step], reason);
    leave(client);
}

static void take_bytes(struct client *client, const char *bytes, size_t size)
{
    if (client->step == STAYING) {
        answer_pings(client, (const uint8_t *)bytes, size);
        return;
    }
    if (client->step == LEAVING || client->size + size > ROOM)
        fail("%zu bytes that nobody asked for", size);
    if (!client->bytes)
        client->bytes = allocate(NULL, ROOM + 1, 1);
    memcpy(client->bytes + client->size, bytes, size);
    client->size += size;
    client->bytes[client->size] = 0;
    if (client->step == SHAKING_HANDS) {
        check_response(client, client->bytes, client->size);
    } else if (client->step == ECHOING) {
        check_echo(client, client->bytes, client->size);
    } else {
        check_close(client, (const uint8_t *)client->bytes, client->size);
    }
}

static void serve(struct client *client, uint32_t events)
{
    now = nanoseconds();
    if (client->step == CONNECTING) {
        if (events & (EPOLLOUT | EPOLLERR))
            begin(client);
        return;
    }
    ssize_t got = recv(client->fd, scratch, sizeof scratch, 0);
    if (got > 0)
        take_bytes(client, scratch, got);
    else if (!got || errno != EAGAIN)
        end_of_stream(client, got ? strerror(errno) : "closed by the server");
}

/* Returns whether stdin, where it is awaited, has ended. */
static bool serve_events(int timeout)
{
    struct epoll_event events[EVENTS];
    bool ended = false;
    int ready = epoll_wait(epoll, events, EVENTS, timeout);
    for (int i = 0; i < ready; i++) {
        if (events[i].data.ptr)
            serve(events[i].data.ptr, events[i].events);
        else
            ended = true;
    }
    now = nanoseconds();
    return ended;
}

static void check_patience(const struct client *clients, int count)
{
    static uint64_t checked_at;
    if (now - checked_at < 1000000000ull)
        return;
    checked_at = now;
    for (int i = 0; i < count; i++) {
        bool waits = clients[i].step != STAYING && clients[i].step != GONE;
        if (waits && clients[i].stepped_at + PATIENCE * 1000000000ull < now)
            fail("nothing came for %d s during %s", PATIENCE, during[clients[i].step]);
    }
}

static void stay(struct client *clients, int count)
{
    while (visits < (uint64_t)count) {
        while (number < (unsigned)count && number - visits < ARRIVING)
            come(&clients[number]);
        serve_events(100);
        check_patience(clients, number);
    }
    puts("ready");
    fflush(stdout);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    while (!serve_events(1000))
        continue;
    printf("{\"connections\": %d, \"pings\": %" PRIu64 "}\n", open_clients, pings);
}

static int by_time(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

static void visit(struct client *clients, int parallel, double warm_up, double seconds)
{
    for (int i = 0; i < parallel; i++)
        come(&clients[i]);
    now = nanoseconds();
    uint64_t begin = now + (uint64_t)(warm_up * 1e9);
    for (; now < begin; check_patience(clients, parallel))
        serve_events(100);
    measuring = true;
    begin = now;
    uint64_t end = begin + (uint64_t)(seconds * 1e9);
    double cpu = cpu_seconds();
    for (; now < end; check_patience(clients, parallel))
        serve_events(100);
    measuring = false;
    seconds = (now - begin) / 1e9;
    cpu = cpu_seconds() - cpu;
    stopping = true;
    for (; open_clients; check_patience(clients, parallel))
        serve_events(100);
    if (!measured)
        fail("nobody came and left in %.1f s", seconds);
    qsort(visit_times, measured, sizeof *visit_times, by_time);
    printf("{\"visits\": %" PRIu64 ", \"visits_in_all\": %" PRIu64 ", \"seconds\": %.6f, ", measured, visits, seconds);
    printf("\"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f, ", visit_times[measured / 2] / 1e3,
           visit_times[measured * 99 / 100] / 1e3, visit_times[measured - 1] / 1e3);
    printf("\"load_cpu\": %.3f}\n", cpu / seconds);
}

int main(int argc, char **argv)
{
    if (argc < 5 || (stays = !strcmp(argv[2], "idle"), argc != (stays ? 5 : 7))) {
        fputs("usage: crowd PORT idle COUNT websocket|raw\n"
              "       crowd PORT visit PARALLEL websocket|raw WARM_UP SECONDS\n", stderr);
        return 2;
    }
    int port = atoi(argv[1]), count = atoi(argv[3]);
    raw = !strcmp(argv[4], "raw");
    server.sin_family = AF_INET;
    server.sin_port = htons(port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    prepare_messages(port);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct client *clients = allocate(NULL, count, sizeof *clients);
    memset(clients, 0, count * sizeof *clients);
    if (stays)
        stay(clients, count);
    else
        visit(clients, count, atof(argv[5]), atof(argv[6]));
    return 0;
}
