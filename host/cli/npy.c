/* The header is checked whole before any of the data is, and the sizes before memory is asked for. */
#include "npy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as they lie in memory");

enum { MAX_HEADER = 1 << 20, LARGEST_READ = 1 << 30 };

size_t npy_type_size(npy_type type)
{
    switch (type) {
#define SIZE(name, bytes, text)                                                                                        \
    case NPY_##name: return bytes;
        NPY_TYPE_MAP(SIZE)
#undef SIZE
    }
    return 0;
}

const char *npy_type_name(npy_type type)
{
    switch (type) {
#define TEXT(name, bytes, text)                                                                                        \
    case NPY_##name: return text;
        NPY_TYPE_MAP(TEXT)
#undef TEXT
    }
    return "unknown";
}

shape_text npy_shape_text(int rank, const int64_t *shape)
{
    shape_text t = {"["};
    size_t n = 1;
    for (int i = 0; i < rank; i++)
        n += (size_t)snprintf(t.text + n, sizeof t.text - n, "%s%" PRId64, i ? ", " : "", shape[i]);
    snprintf(t.text + n, sizeof t.text - n, "]");
    return t;
}

/* ---- the header: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } and spaces up to a line's end */

typedef struct cursor {
    const char *at, *end;
} cursor;

static void skip_spaces(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
}

/* Takes a mark, spaces before it allowed. */
static bool take(cursor *c, char mark)
{
    skip_spaces(c);
    if (c->at == c->end || *c->at != mark) return false;
    c->at++;
    return true;
}

static bool take_word(cursor *c, const char *word)
{
    const size_t n = strlen(word);
    skip_spaces(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n)) return false;
    c->at += n;
    return true;
}

/* A quoted string without escapes; longer than any that is known is as unknown as any other. */
static bool take_string(cursor *c, char text[16])
{
    size_t n = 0;
    skip_spaces(c);
    const char quote = take(c, '\'') ? '\'' : '"';
    if (quote == '"' && !take(c, '"')) return false;
    for (; c->at < c->end && *c->at != quote; c->at++) {
        if (*c->at == '\\' || *c->at == '\n') return false;
        if (n < 15) text[n++] = *c->at;
    }
    text[n] = 0;
    return c->at < c->end && *c->at++ == quote;
}

static const char *take_type(cursor *c, npy_type *type)
{
    char text[16];
    skip_spaces(c);
    if (c->at < c->end && *c->at == '[') return "the elements are records; f2, f4, f8, i4, i8 and b1 are read";
    if (!take_string(c, text)) return "the header's 'descr' is no string";
    if (text[0] == '>') return "the elements are big-endian; only little-endian ones are read";
    if (text[0] == '<' || text[0] == '=' || text[0] == '|') { /* '|': of one byte, without an order */
#define MATCH(name, bytes, type_text)                                                                                  \
    if (!strcmp(text + 1, type_text)) return *type = NPY_##name, (const char *)NULL;
        NPY_TYPE_MAP(MATCH)
#undef MATCH
    }
    return "the elements have a type that is not read; f2, f4, f8, i4, i8 and b1 are";
}

static const char *take_shape(cursor *c, npy_array *a)
{
    bool comma = true;
    if (!take(c, '(')) return "the header's 'shape' is no tuple";
    for (a->rank = 0; !take(c, ')'); a->rank++) {
        int64_t n = 0;
        if (!comma) return "the header's 'shape' is no tuple";
        if (a->rank == NPY_MAX_RANK) return "the array has more than 8 dimensions";
        skip_spaces(c);
        if (c->at == c->end || *c->at < '0' || *c->at > '9') return "the header's 'shape' holds no whole number";
        for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++)
            if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *c->at - '0', &n))
                return "the header's 'shape' holds a number beyond 2^63";
        a->shape[a->rank] = n;
        comma = take(c, ',');
    }
    return a->rank == 1 && !comma ? "the header's 'shape' is no tuple" : NULL; /* Python's (5) is a number */
}

/* The bytes of the whole array fit 63 bits, even with dimensions of 0 left out. */
static bool count_elements(npy_array *a)
{
    int64_t bytes = (int64_t)npy_type_size(a->type);
    a->count = 1;
    for (int i = 0; i < a->rank; i++) {
        if (a->shape[i] && __builtin_mul_overflow(bytes, a->shape[i], &bytes)) return false;
        if (a->shape[i] == 0) a->count = 0;
    }
    if (a->count) a->count = bytes / (int64_t)npy_type_size(a->type);
    return true;
}

const char *npy_parse_header(const char *text, size_t length, npy_array *a)
{
    cursor c = {text, text + length};
    enum { DESCR = 1, ORDER = 2, SHAPE = 4, ALL = 7 };
    int seen = 0;
    bool comma = true;
    memset(a, 0, sizeof *a);
    if (!take(&c, '{')) return "the header is no dictionary";
    while (!take(&c, '}')) {
        char key[16];
        const char *wrong = NULL;
        int which = 0;
        if (!comma || !take_string(&c, key) || !take(&c, ':')) return "the header is no dictionary";
        if (!strcmp(key, "descr")) {
            which = DESCR;
            wrong = take_type(&c, &a->type);
        } else if (!strcmp(key, "fortran_order")) {
            which = ORDER;
            if (take_word(&c, "True"))
                wrong = "the array is in Fortran order; only C order is read";
            else if (!take_word(&c, "False"))
                wrong = "the header's 'fortran_order' is neither True nor False";
        } else if (!strcmp(key, "shape")) {
            which = SHAPE;
            wrong = take_shape(&c, a);
        } else {
            return "the header has a key that is not descr, fortran_order or shape";
        }
        if (wrong) return wrong;
        if (seen & which) return "the header has a key twice";
        seen |= which;
        comma = take(&c, ',');
    }
    skip_spaces(&c);
    if (c.at != c.end) return "the header goes on after its dictionary";
    if (seen != ALL) return "the header lacks one of descr, fortran_order and shape";
    return count_elements(a) ? NULL : "the header's 'shape' has more bytes than 2^63";
}

/* ---- files */

static int read_exactly(int fd, void *to, int64_t bytes)
{
    char *at = to;
    while (bytes > 0) {
        const ssize_t n = read(fd, at, (size_t)(bytes < LARGEST_READ ? bytes : LARGEST_READ));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n == 0 ? ENODATA : errno;
        at += n;
        bytes -= n;
    }
    return 0;
}

/* Magic, version and header; *data_at is where the data begins. */
static int read_header(int fd, int64_t size, const char *flag, const char *path, npy_array *a, int64_t *data_at)
{
    unsigned char start[12] = {0};
    const int64_t n_start = size < 12 ? size : 12;
    int error = read_exactly(fd, start, n_start);
    if (error) return cli_fail(CLI_FAILED, "%s %s: reading: %s", flag, path, strerror(error));
    if (memcmp(start, "\x93NUMPY", n_start < 6 ? (size_t)n_start : 6) || n_start == 0)
        return cli_fail(CLI_USAGE, "%s %s: this is no .npy file", flag, path);
    const int64_t prefix = start[6] == 1 ? 10 : 12;
    if (size < prefix)
        return cli_fail(CLI_USAGE, "%s %s: the file is truncated: %" PRId64 " bytes end inside the header", flag, path,
                        size);
    if (start[6] < 1 || start[6] > 3 || start[7] != 0)
        return cli_fail(CLI_USAGE, "%s %s: .npy version %d.%d; 1.0, 2.0 and 3.0 are read", flag, path, start[6],
                        start[7]);
    int64_t length = start[8] | start[9] << 8;
    if (prefix == 12) length |= (int64_t)start[10] << 16 | (int64_t)start[11] << 24;
    if (length > size - prefix)
        return cli_fail(CLI_USAGE, "%s %s: the file is truncated: %" PRId64 " bytes, the header alone has %" PRId64,
                        flag, path, size, prefix + length);
    if (length > MAX_HEADER)
        return cli_fail(CLI_USAGE, "%s %s: the header has %" PRId64 " bytes; at most %d are read", flag, path, length,
                        MAX_HEADER);
    char *header = cli_alloc("the header", length, 1);
    if (!header) return CLI_FAILED;
    error = lseek(fd, prefix, SEEK_SET) < 0 ? errno : read_exactly(fd, header, length);
    const char *wrong = error ? NULL : npy_parse_header(header, (size_t)length, a);
    free(header);
    if (error) return cli_fail(CLI_FAILED, "%s %s: reading: %s", flag, path, strerror(error));
    if (wrong) return cli_fail(CLI_USAGE, "%s %s: %s", flag, path, wrong);
    *data_at = prefix + length;
    return CLI_OK;
}

static int read_open_file(int fd, const char *flag, const char *path, npy_array *a)
{
    struct stat s;
    int64_t data_at = 0;
    if (fstat(fd, &s)) return cli_fail(CLI_FAILED, "%s %s: %s", flag, path, strerror(errno));
    if (!S_ISREG(s.st_mode)) return cli_fail(CLI_USAGE, "%s %s: this is no regular file", flag, path);
    const int code = read_header(fd, s.st_size, flag, path, a, &data_at);
    if (code) return code;
    /* Before any memory is asked for: the header may promise anything. */
    const int64_t bytes = a->count * (int64_t)npy_type_size(a->type), there = s.st_size - data_at;
    if (there < bytes)
        return cli_fail(CLI_USAGE,
                        "%s %s: the file is truncated: the header promises %" PRId64 " bytes of data, %" PRId64
                        " are there",
                        flag, path, bytes, there);
    if (there > bytes)
        return cli_fail(CLI_USAGE, "%s %s: the header promises %" PRId64 " bytes of data, %" PRId64 " are there", flag,
                        path, bytes, there);
    a->data = cli_alloc(path, bytes, 1);
    if (!a->data) return CLI_FAILED;
    const int error = read_exactly(fd, a->data, bytes);
    if (!error) return CLI_OK;
    free(a->data);
    a->data = NULL;
    return cli_fail(CLI_FAILED, "%s %s: reading: %s", flag, path, strerror(error));
}

int npy_read(const char *flag, const char *path, npy_array *a)
{
    memset(a, 0, sizeof *a);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make it wait */
    if (fd < 0) return cli_fail(CLI_USAGE, "%s %s: %s", flag, path, strerror(errno));
    const int code = read_open_file(fd, flag, path, a);
    close(fd);
    return code;
}

bool npy_write(FILE *to, npy_type type, int rank, const int64_t *shape, const void *data)
{
    enum { PREFIX = 10, ALIGNMENT = 64 };
    char header[512] = "";
    int64_t count = 1;
    size_t n = (size_t)snprintf(header, sizeof header, "{'descr': '<%s', 'fortran_order': False, 'shape': (",
                                npy_type_name(type));
    for (int i = 0; i < rank; i++) {
        n += (size_t)snprintf(header + n, sizeof header - n, "%" PRId64 "%s", shape[i],
                              i + 1 < rank ? ", "
                              : rank == 1  ? ","
                                           : "");
        count *= shape[i];
    }
    n += (size_t)snprintf(header + n, sizeof header - n, "), }");
    while ((PREFIX + n + 1) % ALIGNMENT) header[n++] = ' ';
    header[n++] = '\n';
    const unsigned char prefix[PREFIX] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, n & 0xff, n >> 8 & 0xff};
    return fwrite(prefix, 1, PREFIX, to) == PREFIX && fwrite(header, 1, n, to) == n &&
           fwrite(data, npy_type_size(type), (size_t)count, to) == (size_t)count;
}
