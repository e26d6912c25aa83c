/* The audience of the broadcast benchmark: members who read all that is said, one who says it, and an outsider.

   audience SPEAKER OUTSIDER MEMBER...: open files that it inherits. On stdin it gets exchanges: for each the size of what
   is sent and of what comes back, 4 bytes each, and the bytes of both. The first is the outsider's, and comes back to it;
   the others are the speaker's in turn, and come to every member. A size of 0 ends them. Then each line "RATE AHEAD
   SECONDS" is a window in which so many messages a second are said, and at most so many that some member has not. Once all
   have all, it prints one JSON object with what it counted. Any other byte, or none, ends it with a line on stderr and exit
   status 1. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_EXCHANGES = 66,
    MOST_AHEAD = 256,
    MOST_TIMES = 1 << 17,
    SCRATCH = 1 << 18,      /* bytes read at once */
    EVENTS = 256,
    PATIENCE = 20,          /* seconds without a byte that is awaited */
    PAUSE = 1000,           /* µs between an echo and the outsider's next message, on average */
};

struct exchange {
    uint32_t sizes[2];
    uint8_t *bytes[2];      /* what is sent, and what comes back */
};

struct member {
    int fd;
    uint64_t heard;         /* messages */
    size_t position;        /* bytes of the next one that came */
};

struct times {
    int count;
    uint32_t microseconds[MOST_TIMES];
};

static struct exchange exchanges[MOST_EXCHANGES], *outsiders = exchanges, *said_in_turn = exchanges + 1;
static int variants, speaker, outsider, members;
static uint64_t said, heard_by_all, heard_at;
static int heard_by[MOST_AHEAD];
static uint64_t said_at[MOST_AHEAD];
static struct times echoes, deliveries;
static sem_t window_begins, window_has_ended;
static atomic_bool window_is_open;
static uint8_t scratch[SCRATCH];

static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("audience: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    _exit(1);
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

static void note(struct times *times, uint64_t nanoseconds)
{
    if (times->count < MOST_TIMES)
        times->microseconds[times->count++] = nanoseconds / 1000;
}

static void print_times(const char *name, struct times *times)
{
    printf("\"%s\": [", name);
    for (int i = 0; i < times->count; i++)
        printf("%s%u", i ? ", " : "", times->microseconds[i]);
    printf("]");
    times->count = 0;
}

static void read_exchanges(void)
{
    for (int n = 0; n < MOST_EXCHANGES; n++) {
        struct exchange *exchange = &exchanges[n];
        if (fread(exchange->sizes, sizeof exchange->sizes, 1, stdin) != 1)
            fail("no messages");
        if (!exchange->sizes[0])
            return;
        for (int part = 0; part < 2; part++) {
            exchange->bytes[part] = allocate(1, exchange->sizes[part]);
            if (fread(exchange->bytes[part], exchange->sizes[part], 1, stdin) != 1)
                fail("a message is cut short");
        }
        variants = n;
    }
    fail("more than %d messages", MOST_EXCHANGES - 2);
}

static void send_whole(int fd, const struct exchange *exchange)
{
    if (send(fd, exchange->bytes[0], exchange->sizes[0], MSG_NOSIGNAL) != (ssize_t)exchange->sizes[0])
        fail("cannot send: %s", strerror(errno));
}

/* The outsider: a thread, because the members would hold its clock up. It waits between its messages, as people do. */
static void *echo(void *nothing)
{
    uint8_t reply[4096];
    unsigned seed = 6455;
    for (;;) {
        sem_wait(&window_begins);
        while (atomic_load(&window_is_open)) {
            uint64_t begin = nanoseconds();
            send_whole(outsider, outsiders);
            size_t size = outsiders->sizes[1];
            if (recv(outsider, reply, size, MSG_WAITALL) != (ssize_t)size || memcmp(reply, outsiders->bytes[1], size))
                fail("the outsider got something else than its echo");
            note(&echoes, nanoseconds() - begin);
            usleep(PAUSE / 2 + rand_r(&seed) % PAUSE);
        }
        sem_post(&window_has_ended);
    }
    return nothing;
}

static void count_message(struct member *member, uint64_t now)
{
    int slot = member->heard++ % MOST_AHEAD;
    member->position = 0;
    if (++heard_by[slot] == members) {
        heard_by[slot] = 0;
        heard_by_all++;
        note(&deliveries, now - said_at[slot]);
    }
}

static void take_bytes(struct member *member, const uint8_t *bytes, size_t size, uint64_t now)
{
    while (size) {
        const struct exchange *exchange = &said_in_turn[member->heard % variants];
        size_t part = exchange->sizes[1] - member->position;
        if (part > size)
            part = size;
        if (member->heard == said || memcmp(bytes, exchange->bytes[1] + member->position, part))
            fail("what a member gets as message %llu is not what was said", (unsigned long long)member->heard);
        bytes += part, size -= part, member->position += part;
        if (member->position == exchange->sizes[1])
            count_message(member, now);
    }
}

/* Every byte that is there is taken, for a millisecond at most. Returns the time. */
static uint64_t hear(int epoll)
{
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(epoll, events, EVENTS, 1);
    uint64_t now = nanoseconds();
    for (int i = 0; i < ready; i++) {
        struct member *member = events[i].data.ptr;
        ssize_t got = recv(member->fd, scratch, SCRATCH, MSG_DONTWAIT);
        if (got <= 0)
            fail("a member has lost its connection: %s", got ? strerror(errno) : "closed by the server");
        take_bytes(member, scratch, got, now);
    }
    if (ready || heard_by_all == said)
        heard_at = now;
    if (now - heard_at > PATIENCE * 1000000000ull)
        fail("%d of %d members have message %llu after %d s", heard_by[heard_by_all % MOST_AHEAD], members,
             (unsigned long long)heard_by_all, PATIENCE);
    return now;
}

static void say(uint64_t now)
{
    said_at[said % MOST_AHEAD] = now;
    send_whole(speaker, &said_in_turn[said++ % variants]);
}

static void run_window(int epoll, double rate, unsigned ahead, double seconds)
{
    uint64_t before = said, begin = nanoseconds(), now = begin, next = begin;
    uint64_t end = begin + (uint64_t)(seconds * 1e9), interval = rate ? (uint64_t)(1e9 / rate) : UINT64_MAX;
    double cpu = cpu_seconds();
    heard_at = now;
    atomic_store(&window_is_open, true);
    sem_post(&window_begins);
    for (; now < end; now = hear(epoll)) {
        while (rate && now >= next && said - heard_by_all < ahead) {
            say(now);
            next += interval;
        }
        if (said - heard_by_all == ahead && next < now)
            next = now;     /* what could not be said is not made up for */
    }
    while (heard_by_all < said)
        now = hear(epoll);
    atomic_store(&window_is_open, false);
    sem_wait(&window_has_ended);
    printf("{\"said\": %llu, \"seconds\": %.6f, ", (unsigned long long)(said - before), (now - begin) / 1e9);
    printf("\"client_cpu\": %.6f, ", cpu_seconds() - cpu);
    print_times("echo_us", &echoes);
    printf(", ");
    print_times("delivery_us", &deliveries);
    puts("}");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fputs("usage: audience SPEAKER OUTSIDER MEMBER...\n", stderr);
        return 2;
    }
    speaker = atoi(argv[1]), outsider = atoi(argv[2]), members = argc - 3;
    read_exchanges();
    fcntl(outsider, F_SETFL, fcntl(outsider, F_GETFL) & ~O_NONBLOCK);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct member *all = allocate(members, sizeof *all);
    for (int i = 0; i < members; i++) {
        all[i].fd = atoi(argv[3 + i]);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event))
            fail("file %d: %s", all[i].fd, strerror(errno));
    }
    sem_init(&window_begins, 0, 0);
    sem_init(&window_has_ended, 0, 0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, echo, NULL))
        fail("no thread for the outsider");
    setpriority(PRIO_PROCESS, 0, 10);   /* of this thread alone: members may wait for those whose echo is timed */
    puts("ready");
    fflush(stdout);
    double rate, seconds;
    unsigned ahead;
    while (scanf("%lf %u %lf", &rate, &ahead, &seconds) == 3) {
        if (ahead > MOST_AHEAD)
            fail("%u messages ahead, at most %d", ahead, MOST_AHEAD);
        run_window(epoll, rate, ahead, seconds);
    }
    return 0;
}
