/* Broadcast on one epoll loop: what one process can reach with one send for each member and message.

   A client says by its first byte what it is, and gets that byte back: m, a member, gets every message; s, the speaker,
   says them; any other is an outsider, and gets its own bytes back. Messages are frames of 126 to 65,535 bytes with a mask,
   which go to members as they are. Its members read: one whose kernel takes no more is taken for gone. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SCRATCH = 1 << 16, EVENTS = 256, MOST_MEMBERS = 1 << 16 };

struct connection {
    int fd;
    char kind;          /* 0 before it is known */
    int place;          /* of a member */
};

static struct connection *members[MOST_MEMBERS];
static int count;
static unsigned char bytes[SCRATCH], spoken[2 * SCRATCH];
static size_t filled;       /* bytes of what the speaker began to say */

static void watch(int epoll, struct connection *connection)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event);
}

static void accept_one(int epoll, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    struct connection *connection = fd < 0 ? NULL : calloc(1, sizeof *connection);
    if (!connection)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection->fd = fd;
    watch(epoll, connection);
}

static void leave(struct connection *connection)
{
    if (connection->kind == 'm') {
        members[connection->place] = members[--count];
        members[connection->place]->place = connection->place;
    }
    close(connection->fd);
    free(connection);
}

static void broadcast(const unsigned char *frame, size_t size)
{
    for (int i = 0; i < count; i++)
        if (send(members[i]->fd, frame, size, MSG_NOSIGNAL) != (ssize_t)size)
            shutdown(members[i]->fd, SHUT_RDWR);    /* it leaves when its end is read */
}

static void hear(size_t got)
{
    size_t size, start = 0;
    memcpy(spoken + filled, bytes, got);
    filled += got;
    for (; start + 4 <= filled; start += size) {
        size = 8 + (spoken[start + 2] << 8 | spoken[start + 3]);    /* RFC 6455 §5.2 */
        if (start + size > filled)
            break;
        broadcast(spoken + start, size);
    }
    memmove(spoken, spoken + start, filled -= start);
}

static void serve(struct connection *connection)
{
    ssize_t got = recv(connection->fd, bytes, SCRATCH, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 || (!connection->kind && *bytes == 'm' && count == MOST_MEMBERS)) {
        leave(connection);
        return;
    }
    if (!connection->kind) {
        connection->kind = *bytes;
        if (*bytes == 'm')
            members[connection->place = count++] = connection;
    } else if (connection->kind == 's') {
        hear(got);
        return;
    }
    if (send(connection->fd, bytes, got, MSG_NOSIGNAL) != got)
        leave(connection);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), epoll = epoll_create1(EPOLL_CLOEXEC), on = 1;
    struct connection listening = {.fd = listener};
    address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("broadcast");
        return 1;
    }
    watch(epoll, &listening);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == &listening)
                accept_one(epoll, listener);
            else
                serve(events[i].data.ptr);
        }
    }
}
