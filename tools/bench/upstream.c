/* A fast upstream of OpenAI's shape for measuring gateways: one thread, epoll, HTTP/1.1 with keep-alive.
 *
 *   upstream PORT [CHUNKS=64] [INTERVAL_US=0] [TTFT_US=0]          PACE_US=20000 in the environment
 *
 *   POST *chat/completions    one JSON body after TTFT_US; with "stream": true CHUNKS events, the first after TTFT_US,
 *                             then one every INTERVAL_US, then the finish reason and [DONE]
 *   POST *embeddings          one vector of 256 numbers
 *   GET  *models              one model, "mock"
 *   anything else             {"status":"ok"}
 *
 * Theory. The upstream must cost so little that what is measured is the gateway. So the answers are made once at the
 * start, a request is searched for a few words instead of being parsed, and an answer is one send() where the kernel
 * takes it. Two things need state per connection:
 *
 *   what the kernel would not take yet   `out`, sent on when the socket is writable again
 *   an answer that waits for its time    `state` and `due`; such connections stand in the list `timed`
 *
 *   state     waits for                   and then
 *   READY     a whole request             answers at once, or becomes DELAYED or STREAMING
 *   DELAYED   `due`                       sends the one body, becomes READY
 *   STREAMING `due`, once per event       sends an event; after the last one becomes READY
 *
 * With no delay at all the whole stream is written at once, an event per send(): a burst. A body that holds "paced"
 * (as in "user": "paced") is streamed one event every PACE_US, as models stream, whatever INTERVAL_US says.
 * A body that asks for "include_usage" gets the usage event before [DONE]. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define MADE "\"created\":1700000000,\"model\":\"mock\","
#define CHUNK "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\"," MADE "\"choices\":["
#define USAGE "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":20,\"total_tokens\":32}"

enum state { READY, DELAYED, STREAMING };

typedef struct {
    char *in; /* read and not handled yet; always ends in a NUL */
    size_t in_len, in_size;
    char *out; /* what the kernel has not taken yet: out[out_done..out_len] */
    size_t out_len, out_done;
    enum state state;
    int sent;          /* events of this stream so far */
    uint64_t due, gap; /* microseconds */
    bool usage;
} conn;

static conn conns[MAX_FD];
static int timed[MAX_FD], timed_count;
static int poller;
static int chunks = 64;
static uint64_t interval, first_after, pace = 20000; /* microseconds */

static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
    "\"owned_by\":\"bench\"}]}";
static const char COMPLETION[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\"," MADE "\"choices\":[{\"index\":0,\"message\":{"
    "\"role\":\"assistant\",\"refusal\":null,"
    "\"content\":\"The quick brown fox jumps over the lazy dog and then rests for a while under a tree.\""
    "},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE "}";
static char embedding[8192];

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static bool has(const char *text, size_t len, const char *word)
{
    return memmem(text, len, word, strlen(word)) != NULL;
}

static void *grown(void *block, size_t size)
{
    block = realloc(block, size);
    if (!block) {
        perror("upstream: realloc");
        exit(1);
    }
    return block;
}

static void watch(int fd, uint32_t events, int operation)
{
    struct epoll_event e = {.events = events, .data.fd = fd};
    epoll_ctl(poller, operation, fd, &e);
}

/* ---- writing ---- */

static void write_out(int fd, const char *data, size_t len)
{
    conn *c = &conns[fd];
    if (!c->out_len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) return; /* the client has gone: reading says so next */
        if (n > 0) data += n, len -= (size_t)n;
        if (!len) return;
    }
    c->out = grown(c->out, c->out_len + len);
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
    watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

static void flush_out(int fd)
{
    conn *c = &conns[fd];
    while (c->out_done < c->out_len) {
        ssize_t n = send(fd, c->out + c->out_done, c->out_len - c->out_done, MSG_NOSIGNAL);
        if (n <= 0) return;
        c->out_done += (size_t)n;
    }
    c->out_len = c->out_done = 0;
    watch(fd, EPOLLIN, EPOLL_CTL_MOD);
}

static void write_json(int fd, const char *json)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s";
    char whole[sizeof embedding + sizeof head + 32];
    int n = snprintf(whole, sizeof whole, head, strlen(json), json);
    write_out(fd, whole, (size_t)n);
}

static void write_frame(int fd, const char *data, const char *after)
{
    char frame[1024];
    int n = snprintf(frame, sizeof frame, "%zx\r\n%s\r\n%s", strlen(data), data, after);
    write_out(fd, frame, (size_t)n);
}

/* Sends the next event of a stream; true when it was the last one. */
static bool write_event(int fd)
{
    static const char token[] =
        CHUNK "{\"index\":0,\"delta\":{%s\"content\":\"tok%d \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    static const char stop[] =
        CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n%sdata: [DONE]\n\n";
    static const char usage[] = CHUNK "]," USAGE "}\n\n";
    conn *c = &conns[fd];
    char event[768];
    if (c->sent < chunks) {
        snprintf(event, sizeof event, token, c->sent ? "" : "\"role\":\"assistant\",", c->sent);
        c->sent++;
        write_frame(fd, event, "");
        return false;
    }
    snprintf(event, sizeof event, stop, c->usage ? usage : "");
    write_frame(fd, event, "0\r\n\r\n");
    return true;
}

/* ---- answers that wait for their time ---- */

static void wait_until(int fd, enum state state, uint64_t due)
{
    conns[fd].state = state;
    conns[fd].due = due;
    timed[timed_count++] = fd;
}

static void forget_timed(int fd)
{
    for (int i = 0; i < timed_count; i++) {
        if (timed[i] != fd) continue;
        timed[i] = timed[--timed_count];
        return;
    }
}

/* Does what is due on a connection; true when its answer is complete. */
static bool advance(int fd)
{
    conn *c = &conns[fd];
    if (c->state == DELAYED) {
        write_json(fd, COMPLETION);
    } else if (!write_event(fd)) {
        c->due += c->gap;
        return false;
    }
    c->state = READY;
    return true;
}

static int wait_ms(void)
{
    if (!timed_count) return -1;
    uint64_t now = now_us(), first = UINT64_MAX;
    for (int i = 0; i < timed_count; i++)
        if (conns[timed[i]].due < first) first = conns[timed[i]].due;
    return first <= now ? 0 : (int)((first - now + 999) / 1000);
}

/* ---- requests ---- */

static void answer_stream(int fd, const char *body, size_t len)
{
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    conn *c = &conns[fd];
    write_out(fd, head, sizeof head - 1);
    c->sent = 0;
    c->usage = has(body, len, "\"include_usage\":true") || has(body, len, "\"include_usage\": true");
    c->gap = has(body, len, "\"paced\"") ? pace : interval;
    if (c->gap || first_after) {
        wait_until(fd, STREAMING, now_us() + first_after);
        return;
    }
    while (!write_event(fd))
        ;
}

static void answer(int fd, const char *line, size_t line_len, const char *body, size_t len)
{
    if (has(line, line_len, "/models"))
        write_json(fd, MODELS);
    else if (has(line, line_len, "/embeddings"))
        write_json(fd, embedding);
    else if (!has(line, line_len, "chat/completions"))
        write_json(fd, "{\"status\":\"ok\"}");
    else if (has(body, len, "\"stream\":true") || has(body, len, "\"stream\": true"))
        answer_stream(fd, body, len);
    else if (first_after)
        wait_until(fd, DELAYED, now_us() + first_after);
    else
        write_json(fd, COMPLETION);
}

static char *header(char *head, const char *end, const char *name)
{
    char *found = strcasestr(head, name);
    return found && found < end ? found + strlen(name) : NULL;
}

/* The length of the body at `end`: by its chunks or its Content-Length; -1 while it is not all there. */
static ssize_t body_length(const conn *c, char *end)
{
    size_t there = c->in_len - (size_t)(end - c->in);
    if (header(c->in, end, "\r\ntransfer-encoding: chunked")) {
        static const char last[] = "\r\n0\r\n\r\n";
        char *found = memmem(end, there, last, sizeof last - 1);
        return found ? found + sizeof last - 1 - end : -1;
    }
    char *value = header(c->in, end, "\r\ncontent-length:");
    size_t length = value ? strtoul(value, NULL, 10) : 0;
    return there < length ? -1 : (ssize_t)length;
}

/* Answers every whole request that has been read, up to one whose answer must wait. */
static void answer_all(int fd)
{
    conn *c = &conns[fd];
    while (c->state == READY && c->in_len) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return;
        end += 4;
        ssize_t length = body_length(c, end);
        if (length < 0) {
            if (header(c->in, end, "\r\nexpect: 100")) write_out(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
            return;
        }
        char *eol = memchr(c->in, '\r', c->in_len);
        answer(fd, c->in, (size_t)(eol - c->in), end, (size_t)length);
        size_t used = (size_t)(end - c->in) + (size_t)length;
        c->in_len -= used;
        memmove(c->in, c->in + used, c->in_len + 1);
    }
}

static void drop(int fd)
{
    forget_timed(fd);
    free(conns[fd].in);
    free(conns[fd].out);
    memset(&conns[fd], 0, sizeof conns[fd]);
    close(fd);
}

static void read_in(int fd)
{
    conn *c = &conns[fd];
    char piece[65536];
    for (;;) {
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) {
            drop(fd);
            return;
        }
        size_t needed = c->in_len + (size_t)n + 1;
        if (needed > c->in_size) c->in = grown(c->in, c->in_size = needed * 2);
        memcpy(c->in + c->in_len, piece, (size_t)n);
        c->in_len += (size_t)n;
        c->in[c->in_len] = 0;
    }
    answer_all(fd);
}

static void advance_timed(void)
{
    uint64_t now = timed_count ? now_us() : 0;
    for (int i = 0; i < timed_count; i++) {
        int fd = timed[i];
        if (conns[fd].due > now || !advance(fd)) continue;
        timed[i--] = timed[--timed_count];
        answer_all(fd);
    }
}

/* ---- the loop ---- */

static void accept_all(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        fprintf(stderr, "upstream: 127.0.0.1:%d: %s\n", port, strerror(errno));
        exit(1);
    }
    return fd;
}

static void make_embedding(void)
{
    char *p = embedding;
    p += sprintf(p, "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[");
    for (int i = 0; i < 256; i++) p += sprintf(p, "%s0.0%d", i ? "," : "", i);
    sprintf(p, "]}],\"model\":\"mock\",\"usage\":{\"prompt_tokens\":5,\"total_tokens\":5}}");
}

static void read_arguments(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: upstream PORT [CHUNKS=64] [INTERVAL_US=0] [TTFT_US=0]\n");
        exit(2);
    }
    if (argc > 2) chunks = atoi(argv[2]);
    if (argc > 3) interval = strtoull(argv[3], NULL, 10);
    if (argc > 4) first_after = strtoull(argv[4], NULL, 10);
    if (getenv("PACE_US")) pace = strtoull(getenv("PACE_US"), NULL, 10);
}

int main(int argc, char **argv)
{
    read_arguments(argc, argv);
    make_embedding();
    int listener = listen_on(atoi(argv[1]));
    poller = epoll_create1(0);
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    struct epoll_event events[512];
    for (;;) {
        int n = epoll_wait(poller, events, 512, wait_ms());
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT) flush_out(fd);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_in(fd);
        }
        advance_timed();
    }
}
