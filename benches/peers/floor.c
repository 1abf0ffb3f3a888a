/* The floor: the least work a server on this machine can do for an answer. An epoll server with canned answers, one
 * SO_REUSEPORT listener per thread. It is measured beside the peers, and a second instance is their origin.
 *
 *   floor PORT THREADS
 *
 * Any request for a path that begins with /hit64 gets 64 KB, any other 1 KB. Bodies with Content-Length are read and
 * dropped. It understands just enough HTTP/1.1 for a load generator and a proxy: keep-alive, no chunked requests. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REQUEST_BYTES_MAX = 16384, EVENTS = 64, SMALL_BYTES = 1024, LARGE_BYTES = 65536 };

struct answer {
    char *bytes;
    size_t length;
};

struct connection {
    int fd;
    size_t have;      /* bytes of `in` that are filled */
    size_t body_left; /* bytes of a request body still to be dropped */
    const struct answer *sending;
    size_t sent;
    int wants_out; /* registered for EPOLLOUT, because the socket was full */
    char in[REQUEST_BYTES_MAX + 1];
};

static struct answer small, large;
static int port;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* The fields make the answer cacheable for nginx, haproxy and forefront alike; haproxy also wants a validator or a lifetime. */
static void make_answer(struct answer *answer, size_t body_bytes) {
    char head[512];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\nServer: floor\r\nContent-Type: text/plain\r\n"
                     "Cache-Control: public, max-age=60\r\nETag: \"floor\"\r\nContent-Length: %zu\r\n\r\n",
                     body_bytes);
    answer->length = (size_t)n + body_bytes;
    answer->bytes = malloc(answer->length);
    if (!answer->bytes) die("malloc");
    memcpy(answer->bytes, head, (size_t)n);
    memset(answer->bytes + n, 'x', body_bytes);
}

static int listen_on(int number) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&to, sizeof to) < 0) die("bind");
    if (listen(fd, 1024) < 0) die("listen");
    return fd;
}

/* Sends what is left of the current answer. 0: done, 1: the socket is full, -1: broken. */
static int flush(struct connection *c) {
    while (c->sending) {
        ssize_t n = send(c->fd, c->sending->bytes + c->sent, c->sending->length - c->sent, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 1 : -1;
        c->sent += (size_t)n;
        if (c->sent == c->sending->length) c->sending = NULL;
    }
    return 0;
}

/* Takes one whole request out of the buffer. 1: an answer is due, 0: more bytes are needed, -1: too long. */
static int take_request(struct connection *c) {
    if (c->body_left) {
        size_t n = c->body_left < c->have ? c->body_left : c->have;
        memmove(c->in, c->in + n, c->have - n);
        c->have -= n;
        c->body_left -= n;
        if (c->body_left) return 0;
        c->in[c->have] = 0;
        c->sent = 0;
        return 1;
    }
    if (!c->have) return 0;
    c->in[c->have] = 0;
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return c->have == REQUEST_BYTES_MAX ? -1 : 0;
    char *path = memchr(c->in, ' ', (size_t)(end - c->in));
    c->sending = path && !strncmp(path + 1, "/hit64", 6) ? &large : &small;
    c->sent = 0;
    size_t body = 0;
    if (c->in[0] != 'G') {
        end[2] = 0;
        char *field = strcasestr(c->in, "\r\ncontent-length:");
        if (field) body = strtoul(field + 17, NULL, 10);
    }
    size_t used = (size_t)(end + 4 - c->in);
    memmove(c->in, c->in + used, c->have - used);
    c->have -= used;
    if (!body) return 1;
    c->body_left = body;
    return take_request(c);
}

static void watch(struct connection *c, int loop, int wants_out) {
    struct epoll_event event = {.events = wants_out ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &event);
    c->wants_out = wants_out;
}

/* Reads, answers, and says whether the connection stays open. */
static int serve(struct connection *c, int loop) {
    for (;;) {
        int state = c->body_left ? 0 : flush(c);
        if (state < 0) return 0;
        if (c->wants_out != state) watch(c, loop, state);
        if (state == 1) return 1;
        int taken = take_request(c);
        if (taken < 0) return 0;
        if (taken) continue;
        ssize_t n = recv(c->fd, c->in + c->have, REQUEST_BYTES_MAX - c->have, 0);
        if (n == 0) return 0;
        if (n < 0) return errno == EAGAIN;
        c->have += (size_t)n;
        taken = take_request(c);
        if (taken < 0) return 0;
        if (!taken) continue;
        state = flush(c);
        if (state < 0) return 0;
        /* The usual case ends here: one recv, one send, back to epoll (level-triggered, so nothing is lost). */
        if (state == 0 && !c->have && !c->wants_out) return 1;
    }
}

static void accept_all(int listener, int loop) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
    }
}

static void *run(void *unused) {
    (void)unused;
    int loop = epoll_create1(EPOLL_CLOEXEC), listener = listen_on(port);
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(loop, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                accept_all(listener, loop);
            } else if (!serve(c, loop)) {
                close(c->fd);
                free(c);
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: floor PORT THREADS\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    port = atoi(argv[1]);
    make_answer(&small, SMALL_BYTES);
    make_answer(&large, LARGE_BYTES);
    for (int i = 1; i < atoi(argv[2]); i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, NULL)) die("pthread_create");
    }
    run(NULL);
    return 0;
}
