/* The people of the bus benchmark: members of many rooms on many servers, and those who speak to the rooms.

   rooms SPEAKERS MEMBERS FILE...: open files that it inherits, those of the speakers and then of the members, MEMBERS for
   each room. On stdin it gets the size of a speaker's WebSocket frame, 4 bytes, and the frame, whose masking key is 0. From
   its first '#' on it has "#ROOM SPEAKER NUMBER", of 6, 2 and 8 digits, written anew for each message. Then each line
   "RATE AHEAD SECONDS" is a window in which so many messages a second are said, and at most so many that some member has not.
   Once all have all, or nothing more comes, it prints one JSON object with what it counted. A message that is not as it was
   said, and a connection that ends, end it with a line on stderr and exit status 1. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
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
    MOST_MESSAGES = 1 << 20,    /* in one window */
    MOST_SPEAKERS = 64,
    LARGEST_FRAME = 4096,       /* bytes */
    SCRATCH = 1 << 18,          /* bytes read at once */
    EVENTS = 256,
    PATIENCE = 2,               /* seconds after which a message counts as lost */
    STAMP = 19,                 /* bytes of "#ROOM SPEAKER NUMBER" */
};

struct message {
    uint64_t said_at;
    uint32_t room;
    uint32_t heard;             /* by so many members */
    bool given_up;
};

struct member {
    int fd;
    uint32_t room;
    uint32_t *newest;           /* number behind the newest message of each speaker */
    uint64_t order;             /* what was heard in this window, and in which order, as one number */
    uint8_t *rest;              /* the beginning of a frame */
    uint32_t rest_size;
};

static struct message *messages;
static struct member *people;
static int speakers, members, rooms, speaker_fds[MOST_SPEAKERS];
static uint8_t frame[LARGEST_FRAME], *text;
static uint32_t frame_size, text_size;
static uint32_t first, said, oldest;    /* numbers: the window's first message, the next, and the first on its way */
static uint32_t on_the_way, whole, again;
static uint64_t heard, heard_at;
static uint32_t *deliveries;            /* µs until the last member had a message */
static uint8_t scratch[LARGEST_FRAME + SCRATCH];

static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("rooms: ", stderr);
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

static void write_number(uint8_t *into, int digits, uint32_t number)
{
    while (digits--) {
        into[digits] = '0' + number % 10;
        number /= 10;
    }
}

static uint32_t read_number(const uint8_t *from, int digits)
{
    uint32_t number = 0;
    while (digits--)
        number = number * 10 + *from++ - '0';
    return number;
}

static void read_frame(void)
{
    if (fread(&frame_size, sizeof frame_size, 1, stdin) != 1 || frame_size > LARGEST_FRAME ||
        fread(frame, frame_size, 1, stdin) != 1)
        fail("no frame to send");
    if (!(text = memchr(frame, '#', frame_size)))
        fail("no place for a stamp");
    text_size = frame + frame_size - text;
}

static void say(uint64_t now)
{
    static uint64_t random = 6455;
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    uint32_t room = (random >> 33) % rooms, speaker = said % speakers;
    struct message *message = &messages[said % MOST_MESSAGES];
    *message = (struct message){.said_at = now, .room = room};
    write_number(text + 1, 6, room);
    write_number(text + 8, 2, speaker);
    write_number(text + 11, 8, said);
    if (send(speaker_fds[speaker], frame, frame_size, MSG_NOSIGNAL) != (ssize_t)frame_size)
        fail("cannot send: %s", strerror(errno));
    said++, on_the_way++;
}

static void take_text(struct member *member, const uint8_t *stamp, size_t size, uint64_t now)
{
    if (size != text_size || memcmp(stamp + STAMP, text + STAMP, size - STAMP))
        fail("a member got something else than what was said");
    uint32_t room = read_number(stamp + 1, 6), speaker = read_number(stamp + 8, 2), number = read_number(stamp + 11, 8);
    if (room != member->room || speaker >= (uint32_t)speakers || number >= said)
        fail("a member got what was not said in its room");
    heard_at = now;
    if (number < first)
        return;                         /* it counted as lost in its own window */
    if (number < member->newest[speaker]) {
        again++;                        /* heard before, or behind a later one */
        return;
    }
    member->newest[speaker] = number + 1;
    member->order = (member->order + number + 1) * 0x9E3779B97F4A7C15ull;
    heard++;
    struct message *message = &messages[number % MOST_MESSAGES];
    if (++message->heard < (uint32_t)members)
        return;
    deliveries[whole++] = (now - message->said_at) / 1000;
    if (!message->given_up)
        on_the_way--;
}

/* Returns how many bytes of frames were taken. */
static size_t take_frames(struct member *member, const uint8_t *bytes, size_t size, uint64_t now)
{
    size_t taken = 0;
    for (;;) {
        const uint8_t *begin = bytes + taken;
        size_t left = size - taken, head = 2;
        if (left < 2)
            return taken;
        size_t length = begin[1] & 127;
        if (length == 126) {
            if (left < 4)
                return taken;
            head = 4, length = begin[2] << 8 | begin[3];
        }
        if (begin[1] >> 7 || length > LARGEST_FRAME - head)
            fail("a member got a frame that nobody sends");
        if (left < head + length)
            return taken;
        if ((begin[0] & 15) == 8)
            fail("a member was closed by the server");
        const uint8_t *stamp = memchr(begin + head, '#', length);
        if (stamp)                      /* else a ping of WebSocket or Socket.IO */
            take_text(member, stamp, begin + head + length - stamp, now);
        taken += head + length;
    }
}

static void take_bytes(struct member *member, uint64_t now)
{
    uint8_t *into = scratch + member->rest_size;
    ssize_t got = recv(member->fd, into, SCRATCH, MSG_DONTWAIT);
    if (got <= 0)
        fail("a member has lost its connection: %s", got ? strerror(errno) : "closed by the server");
    if (member->rest_size)
        memcpy(scratch, member->rest, member->rest_size);
    size_t size = member->rest_size + got, taken = take_frames(member, scratch, size, now);
    if ((member->rest_size = size - taken)) {
        if (!member->rest)
            member->rest = allocate(1, LARGEST_FRAME);
        memcpy(member->rest, scratch + taken, member->rest_size);
    }
}

/* Every byte that is there is taken, for a millisecond at most. Returns the time. */
static uint64_t hear(int epoll)
{
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(epoll, events, EVENTS, 1);
    uint64_t now = nanoseconds();
    for (int i = 0; i < ready; i++)
        take_bytes(events[i].data.ptr, now);
    for (; oldest < said; oldest++) {
        struct message *message = &messages[oldest % MOST_MESSAGES];
        if (message->heard == (uint32_t)members)
            continue;
        if (now - message->said_at < PATIENCE * 1000000000ull)
            break;
        message->given_up = true;
        on_the_way--;
    }
    return now;
}

static uint32_t rooms_in_disorder(void)
{
    uint32_t count = 0;
    for (int room = 0; room < rooms; room++) {
        struct member *all = people + room * members;
        int same = 1;
        while (same < members && all[same].order == all->order)
            same++;
        count += same < members;
    }
    return count;
}

static void run_window(int epoll, double rate, uint32_t ahead, double seconds)
{
    uint64_t begin = nanoseconds(), now = begin, next = begin;
    uint64_t end = begin + (uint64_t)(seconds * 1e9), interval = (uint64_t)(1e9 / rate);
    double cpu = cpu_seconds();
    first = oldest = said, whole = again = on_the_way = 0, heard = 0, heard_at = begin;
    for (int i = 0; i < rooms * members; i++)
        people[i].order = 0;
    for (; now < end; now = hear(epoll)) {
        while (now >= next && on_the_way < ahead && said - first < MOST_MESSAGES) {
            say(now);
            next += interval;
        }
        if (on_the_way == ahead && next < now)
            next = now;                 /* what could not be said is not made up for */
    }
    while (on_the_way)
        now = hear(epoll);
    uint64_t wanted = (uint64_t)(said - first) * members;
    uint64_t last = heard_at > end || heard == wanted ? heard_at : end;
    printf("{\"said\": %u, \"heard\": %llu, \"lost\": %llu, \"again\": %u, ", said - first, (unsigned long long)heard,
           (unsigned long long)(wanted - heard), again);
    printf("\"disorder\": %u, \"seconds\": %.6f, \"client_cpu\": %.6f, ", rooms_in_disorder(), (last - begin) / 1e9,
           cpu_seconds() - cpu);
    printf("\"delivery_us\": [");
    for (uint32_t i = 0; i < whole; i++)
        printf("%s%u", i ? ", " : "", deliveries[i]);
    puts("]}");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fputs("usage: rooms SPEAKERS MEMBERS FILE...\n", stderr);
        return 2;
    }
    speakers = atoi(argv[1]), members = atoi(argv[2]);
    if (speakers < 1 || speakers > MOST_SPEAKERS || members < 1)
        fail("1 to %d speakers, and a member at least", MOST_SPEAKERS);
    rooms = (argc - 3 - speakers) / members;
    read_frame();
    messages = allocate(MOST_MESSAGES, sizeof *messages);
    deliveries = allocate(MOST_MESSAGES, sizeof *deliveries);
    people = allocate(rooms * members, sizeof *people);
    for (int i = 0; i < speakers; i++)
        speaker_fds[i] = atoi(argv[3 + i]);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < rooms * members; i++) {
        people[i].fd = atoi(argv[3 + speakers + i]);
        people[i].room = i / members;
        people[i].newest = allocate(speakers, sizeof *people[i].newest);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &people[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, people[i].fd, &event))
            fail("file %d: %s", people[i].fd, strerror(errno));
    }
    puts("ready");
    fflush(stdout);
    double rate, seconds;
    unsigned ahead;
    while (scanf("%lf %u %lf", &rate, &ahead, &seconds) == 3)
        run_window(epoll, rate, ahead, seconds);
    return 0;
}
