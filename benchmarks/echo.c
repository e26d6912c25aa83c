/* Raw TCP echo on one epoll loop: what one process can reach with one recv and one send for each message. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SCRATCH = 1 << 16, EVENTS = 256 };

struct connection {
    int fd;
    size_t kept, gone;      /* bytes that the kernel did not take, and how many of them it took since */
    char bytes[SCRATCH];
};

static void watch(int epoll, int operation, struct connection *connection, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(epoll, operation, connection->fd, &event);
}

static void accept_one(int epoll, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    struct connection *connection = fd < 0 ? NULL : calloc(1, sizeof *connection);
    if (!connection)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection->fd = fd;
    watch(epoll, EPOLL_CTL_ADD, connection, EPOLLIN);
}

/* Returns 0 at the connection's end. While bytes are kept nothing is read: the peer waits. */
static int echo(int epoll, struct connection *connection)
{
    size_t was_kept = connection->kept;
    if (!was_kept) {
        ssize_t got = recv(connection->fd, connection->bytes, SCRATCH, 0);
        if (got <= 0)
            return got < 0 && errno == EAGAIN;
        connection->kept = got;
    }
    size_t left = connection->kept - connection->gone;
    ssize_t sent = send(connection->fd, connection->bytes + connection->gone, left, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        return 0;
    connection->gone += sent > 0 ? sent : 0;
    if (connection->gone == connection->kept)
        connection->gone = connection->kept = 0;
    if (!was_kept != !connection->kept)
        watch(epoll, EPOLL_CTL_MOD, connection, connection->kept ? EPOLLOUT : EPOLLIN);
    return 1;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), epoll = epoll_create1(EPOLL_CLOEXEC), on = 1;
    struct connection listening = {.fd = listener};
    address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("echo");
        return 1;
    }
    watch(epoll, EPOLL_CTL_ADD, &listening, EPOLLIN);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection == &listening)
                accept_one(epoll, listener);
            else if (!echo(epoll, connection)) {
                close(connection->fd);
                free(connection);
            }
        }
    }
}
