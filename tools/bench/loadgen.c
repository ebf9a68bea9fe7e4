/* An HTTP/1.1 load generator that understands server-sent events: one thread, epoll.
 *
 *   loadgen PORT PATH CONNECTIONS SECONDS BODYFILE [HEADER...]     RATE=n, KEY=sk-... in the environment
 *
 * POSTs the file (GETs when it is empty) to 127.0.0.1 again and again and prints one line:
 *
 *   rps eps           requests and events a second
 *   done events       requests answered in full, events seen (those of streams cut off at the end count too)
 *   err nonok         connections that broke or streams that ended without [DONE]; answers with a status other than 200
 *   p50 p90 p99 max   milliseconds from a request's first byte sent to its answer's last byte
 *   ttf50 ttf99       milliseconds to the first event
 *
 * Theory. Without RATE the loop is closed: each connection sends its next request as soon as the answer is there, which
 * finds the throughput. With RATE each connection sends CONNECTIONS/RATE seconds apart, spread over that time, and a
 * request that is late because the last answer was late is sent at once: latency at a load that the server is far from
 * filling. An answer is over at its Content-Length or its last chunk ("0\r\n\r\n" at the end of what was read); an
 * event is a "data: ", counted as it arrives. At the end requests in flight are left alone: neither done nor errors. */
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

typedef struct {
    int fd;
    bool busy;               /* a request is under way */
    uint64_t sent, first;    /* ns: the request, its first event (0: none yet) */
    uint64_t next;           /* ns: when the next request is due, with RATE */
    char *in;                /* the answer so far; always ends in a NUL */
    size_t in_len, in_size;
    size_t head_len;         /* 0 until the head is complete */
    size_t scanned;          /* events are counted up to here */
    bool chunked;
    long content_length;     /* -1: none given */
    long events;
} conn;

typedef struct {
    double *values; /* milliseconds */
    size_t count, size;
} series;

enum progress { BROKEN = -1, WAITING, COMPLETE };

static conn *conns;
static int count, port, poller;
static char *request;
static size_t request_len;
static uint64_t gap; /* ns between a connection's requests, 0 without RATE */
static series latency, first_event;
static long done, events, errors, not_ok;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void *grown(void *block, size_t size)
{
    block = realloc(block, size);
    if (!block) {
        perror("loadgen: realloc");
        exit(1);
    }
    return block;
}

/* ---- figures ---- */

static void add(series *s, uint64_t ns)
{
    if (s->count == s->size) {
        s->size = s->size ? s->size * 2 : 65536;
        s->values = grown(s->values, s->size * sizeof *s->values);
    }
    s->values[s->count++] = (double)ns / 1e6;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const series *s, double p)
{
    return s->count ? s->values[(size_t)(p * (double)(s->count - 1))] : 0;
}

static void print_figures(double seconds)
{
    qsort(latency.values, latency.count, sizeof(double), ascending);
    qsort(first_event.values, first_event.count, sizeof(double), ascending);
    printf("rps=%.1f eps=%.0f ", (double)done / seconds, (double)events / seconds);
    printf("done=%ld events=%ld err=%ld nonok=%ld ", done, events, errors, not_ok);
    printf("p50=%.3f p90=%.3f ", quantile(&latency, .5), quantile(&latency, .9));
    printf("p99=%.3f max=%.3f ", quantile(&latency, .99), quantile(&latency, 1));
    printf("ttf50=%.3f ttf99=%.3f\n", quantile(&first_event, .5), quantile(&first_event, .99));
}

/* ---- one connection ---- */

static void open_conn(conn *c)
{
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        fprintf(stderr, "loadgen: connect to 127.0.0.1:%d: %s\n", port, strerror(errno));
        exit(1);
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void reopen(conn *c)
{
    close(c->fd);
    open_conn(c);
}

static void send_request(conn *c)
{
    c->in_len = c->head_len = c->scanned = 0;
    c->first = 0;
    c->events = 0;
    c->chunked = false;
    c->content_length = -1;
    c->busy = true;
    c->sent = now_ns();
    for (size_t at = 0; at < request_len;) {
        ssize_t n = send(c->fd, request + at, request_len - at, MSG_NOSIGNAL);
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        errors++;
        reopen(c);
        at = 0;
    }
}

static bool header(const conn *c, const char *name, const char **value)
{
    const char *found = strcasestr(c->in, name);
    if (!found || found >= c->in + c->head_len) return false;
    *value = found + strlen(name);
    return true;
}

static void read_head(conn *c)
{
    const char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4), *value;
    if (!end) return;
    c->head_len = c->scanned = (size_t)(end - c->in) + 4;
    if (strncmp(c->in, "HTTP/1.1 200", 12)) not_ok++;
    if (header(c, "\r\ncontent-length:", &value)) c->content_length = atol(value);
    c->chunked = header(c, "\r\ntransfer-encoding: chunked", &value);
}

static void count_events(conn *c)
{
    static const char mark[] = "data: ";
    const size_t len = sizeof mark - 1;
    char *end = c->in + c->in_len, *from = c->in + c->scanned, *found;
    while ((found = memmem(from, (size_t)(end - from), mark, len))) {
        if (!c->first) c->first = now_ns();
        c->events++;
        events++;
        from = found + len;
    }
    size_t left = (size_t)(end - from); /* may end in the beginning of a mark */
    c->scanned = c->in_len - (left < len - 1 ? left : len - 1);
}

static bool ends_with(const conn *c, const char *what, size_t within)
{
    size_t from = c->in_len > within ? c->in_len - within : 0;
    return memmem(c->in + from, c->in_len - from, what, strlen(what)) != NULL;
}

static bool complete(const conn *c)
{
    if (c->chunked) return ends_with(c, "0\r\n\r\n", 5);
    return c->content_length >= 0 && c->in_len - c->head_len >= (size_t)c->content_length;
}

static enum progress read_answer(conn *c)
{
    char piece[65536];
    ssize_t n = recv(c->fd, piece, sizeof piece, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return WAITING;
    if (n <= 0) return BROKEN;
    size_t needed = c->in_len + (size_t)n + 1;
    if (needed > c->in_size) c->in = grown(c->in, c->in_size = needed * 2);
    memcpy(c->in + c->in_len, piece, (size_t)n);
    c->in_len += (size_t)n;
    c->in[c->in_len] = 0;
    if (!c->head_len) read_head(c);
    if (!c->head_len) return WAITING;
    count_events(c);
    return complete(c) ? COMPLETE : WAITING;
}

static void finish(conn *c)
{
    done++;
    add(&latency, now_ns() - c->sent);
    if (c->first) add(&first_event, c->first - c->sent);
    if (c->events && !ends_with(c, "[DONE]", 64)) errors++;
}

static void on_readable(conn *c)
{
    enum progress progress = read_answer(c);
    if (progress == WAITING) return;
    if (progress == COMPLETE) {
        finish(c);
    } else {
        if (c->busy) errors++;
        reopen(c);
        c->next = now_ns();
    }
    c->busy = false;
    if (!gap) send_request(c);
}

/* ---- the run ---- */

static void send_due(uint64_t now)
{
    for (int i = 0; i < count; i++) {
        conn *c = &conns[i];
        if (c->busy || c->next > now) continue;
        send_request(c);
        c->next += gap;
        if (c->next < now) c->next = now;
    }
}

static void run_until(uint64_t end)
{
    struct epoll_event ready[256];
    for (uint64_t now; (now = now_ns()) < end;) {
        if (gap) send_due(now);
        int n = epoll_wait(poller, ready, 256, gap ? 1 : 50);
        for (int i = 0; i < n; i++) on_readable(ready[i].data.ptr);
    }
}

static size_t read_file(const char *path, char *into, size_t size)
{
    FILE *f = fopen(path, "r");
    if (!f) {
        fprintf(stderr, "loadgen: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    size_t n = fread(into, 1, size, f);
    fclose(f);
    return n;
}

static void make_request(const char *path, const char *body_file, char **headers, int header_count)
{
    static char body[1 << 20];
    size_t len = read_file(body_file, body, sizeof body);
    const char *key = getenv("KEY") ? getenv("KEY") : "sk-bench";
    FILE *f = open_memstream(&request, &request_len);
    fprintf(f, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", len ? "POST" : "GET", path, port);
    fprintf(f, "Content-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %zu\r\n", key, len);
    for (int i = 0; i < header_count; i++) fprintf(f, "%s\r\n", headers[i]);
    fprintf(f, "\r\n");
    fwrite(body, 1, len, f);
    fclose(f);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: loadgen PORT PATH CONNECTIONS SECONDS BODYFILE [HEADER...]\n");
        return 2;
    }
    port = atoi(argv[1]);
    count = atoi(argv[3]);
    double rate = getenv("RATE") ? atof(getenv("RATE")) : 0;
    if (rate > 0) gap = (uint64_t)(1e9 * count / rate);
    make_request(argv[2], argv[5], argv + 6, argc - 6);
    poller = epoll_create1(0);
    conns = calloc((size_t)count, sizeof *conns);
    uint64_t start = now_ns();
    for (int i = 0; i < count; i++) {
        open_conn(&conns[i]);
        conns[i].next = start + gap * (uint64_t)i / (uint64_t)count;
        if (!gap) send_request(&conns[i]);
    }
    run_until(start + (uint64_t)(atof(argv[4]) * 1e9));
    print_figures((double)(now_ns() - start) / 1e9);
    return 0;
}
