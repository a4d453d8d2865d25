#include "cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../text.h"
#include "../user_folder.h"
#include "device_cl.h"

extern char **environ;

enum {
    FORMAT_VERSION = 1,
    DEVICES_MOST = 64, /* of a cl_context */
    DEFAULT_MIB = 256,
    NAME_LENGTH = 36, /* 32 hexadecimal digits and ".bin" */
    STALE_SECONDS = 3600
};

static const char temporary_end[] = ".tmp";

/* ---- records. Numbers are the host's: a file from a machine of the other byte order has no such version. */

typedef struct record_header {
    char magic[8];
    uint32_t version, zero;
    uint64_t key_bytes, binary_bytes;
} record_header;

static const char record_magic[8] = "clattnPB";

/* FNV-1a, 64 bits. */
static uint64_t hash(uint64_t state, const void *data, size_t n)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < n; i++) state = (state ^ at[i]) * 0x100000001b3;
    return state;
}

enum { HASHES = 2 };
static const uint64_t hash_starts[HASHES] = {0xcbf29ce484222325, 0x84222325cbf29ce4};

/* Reads the record at data, which keeps it; the reason when it is none. *size: of the record, when more follows. */
static const char *record_read(const unsigned char *data, size_t size, program_record *r)
{
    record_header h;
    uint64_t sum;
    if (size < sizeof h + sizeof sum) return "truncated";
    memcpy(&h, data, sizeof h);
    if (memcmp(h.magic, record_magic, sizeof h.magic)) return "no program of clattn's";
    if (h.version != FORMAT_VERSION || h.zero) return "of another format version";
    const uint64_t room = size - sizeof h - sizeof sum;
    if (h.key_bytes > room || h.binary_bytes > room - h.key_bytes) return "truncated";
    const size_t summed = sizeof h + (size_t)h.key_bytes + (size_t)h.binary_bytes;
    memcpy(&sum, data + summed, sizeof sum);
    if (sum != hash(hash_starts[0], data, summed)) return "damaged: its checksum is wrong";
    if (!h.key_bytes || !h.binary_bytes) return "empty";
    r->size = summed + sizeof sum;
    r->key = (const char *)data + sizeof h;
    r->key_bytes = (size_t)h.key_bytes;
    r->binary = data + sizeof h + h.key_bytes;
    r->binary_bytes = (size_t)h.binary_bytes;
    return NULL;
}

static bool has_key(const program_record *r, const char *key, size_t length)
{
    return r->key && key && r->key_bytes == length && !memcmp(r->key, key, length);
}

cl_int clattn__binary_get(cl_program program, cl_device_id id, size_t *size, unsigned char *to)
{
    cl_device_id devices[DEVICES_MOST];
    size_t sizes[DEVICES_MOST] = {0}, bytes = 0, i = 0;
    unsigned char *places[DEVICES_MOST] = {0};
    cl_int code = clGetProgramInfo(program, CL_PROGRAM_DEVICES, sizeof devices, devices, &bytes);
    if (code == CL_SUCCESS) code = clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof sizes, sizes, NULL);
    const size_t n = bytes / sizeof *devices;
    if (code != CL_SUCCESS || !n) return code;
    while (i < n && devices[i] != id) i++;
    if (i == n || !sizes[i]) /* PoCL 3.1 counts only the devices that it built for */
        for (i = 0; i < n - 1 && !sizes[i];) i++;
    if (to && sizes[i] != *size) return CL_INVALID_VALUE;
    *size = sizes[i];
    places[i] = to;
    return to ? clGetProgramInfo(program, CL_PROGRAM_BINARIES, n * sizeof *places, places, NULL) : CL_SUCCESS;
}

clattn_status clattn__record_make(const char *key, cl_program program, cl_device_id id, program_record *r)
{
    size_t bytes = 0;
    record_header h = {.version = FORMAT_VERSION, .key_bytes = strlen(key)};
    memset(r, 0, sizeof *r);
    if (!h.key_bytes) return CLATTN_STATUS_SUCCESS;
    RETURN_IF_CL("clGetProgramInfo", clattn__binary_get(program, id, &bytes, NULL));
    if (!bytes) return CLATTN_STATUS_SUCCESS;
    const size_t at = sizeof h + (size_t)h.key_bytes, summed = at + bytes, size = summed + sizeof(uint64_t);
    unsigned char *data = malloc(size);
    RETURN_IF(!data, OUT_OF_HOST_MEMORY, "no room for a program's binary of %zu bytes", bytes);
    const cl_int code = clattn__binary_get(program, id, &bytes, data + at);
    if (code != CL_SUCCESS) {
        free(data);
        return clattn__cl_fail("clGetProgramInfo", code);
    }
    memcpy(h.magic, record_magic, sizeof h.magic);
    h.binary_bytes = bytes;
    memcpy(data, &h, sizeof h);
    memcpy(data + sizeof h, key, (size_t)h.key_bytes);
    const uint64_t sum = hash(hash_starts[0], data, summed);
    memcpy(data + summed, &sum, sizeof sum);
    *r = (program_record){data, size, (const char *)data + sizeof h, data + at, (size_t)h.key_bytes, bytes};
    return CLATTN_STATUS_SUCCESS;
}

/* ---- keys */

/* What decides which instructions a CPU has, from the first processor's lines; nothing on systems without the file. */
static void add_host_cpu(text *t)
{
    static const char *const fields[] = {
        "vendor_id",    "cpu family",       "model",    "model name",  "stepping", "flags",
        "Features",     "CPU implementer",  "CPU part", "CPU variant", "isa",      "uarch",
        "CPU revision", "CPU architecture", "cpu",      "features",    "machine"};
    char lines[16384], *rest = NULL;
    size_t n = 0;
    const int file = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    for (ssize_t got = 1; file >= 0 && got > 0 && n<sizeof lines - 1; n += got> 0 ? (size_t)got : 0)
        got = read(file, lines + n, sizeof lines - 1 - n);
    if (file >= 0) close(file);
    lines[n] = 0;
    char *end = strstr(lines, "\n\n");
    if (end) *end = 0;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        size_t length = strcspn(line, ":");
        while (length && (line[length - 1] == '\t' || line[length - 1] == ' ')) length--;
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (strlen(fields[i]) == length && !strncmp(line, fields[i], length)) text_add(t, "%s\n", line);
    }
}

/* Drivers that take build flags and the like from the environment: not where they keep and print things. */
static void add_environment(text *t)
{
    static const char *const drivers[] = {"POCL_", "AMD_OCL_", "IGC_"}, *const harmless[] = {"POCL_CACHE_DIR",
                                                                                             "POCL_DEBUG"};
    for (char **e = environ; e && *e; e++) {
        bool is_one = false;
        for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++)
            is_one = is_one || !strncmp(*e, drivers[i], strlen(drivers[i]));
        for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
            is_one = is_one && strncmp(*e, harmless[i], strlen(harmless[i])) != 0;
        if (is_one) text_add(t, "%s\n", *e);
    }
}

static cl_int add_device_text(text *t, cl_device_id id, cl_device_info what)
{
    char value[1024] = "";
    const cl_int code = clGetDeviceInfo(id, what, sizeof value - 1, value, NULL);
    if (code == CL_SUCCESS) text_add(t, "%s\n", value);
    return code;
}

static cl_int add_device(text *t, cl_device_id id, bool *is_cpu)
{
    static const cl_device_info texts[] = {CL_DEVICE_NAME, CL_DEVICE_VENDOR, CL_DEVICE_VERSION, CL_DRIVER_VERSION};
    char value[1024] = "";
    cl_platform_id platform;
    cl_device_type type = 0;
    cl_int code = clGetDeviceInfo(id, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL);
    if (code == CL_SUCCESS) code = clGetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, NULL);
    if (code == CL_SUCCESS) code = clGetPlatformInfo(platform, CL_PLATFORM_VERSION, sizeof value - 1, value, NULL);
    text_add(t, "%s\n", value);
    for (size_t i = 0; i < sizeof texts / sizeof *texts && code == CL_SUCCESS; i++)
        code = add_device_text(t, id, texts[i]);
    *is_cpu = type & CL_DEVICE_TYPE_CPU;
    return code;
}

char *clattn__cache_key(const program_cache *c, const char *options, const char *source)
{
    const size_t size = strlen(c->identity) + strlen(options) + strlen(source) + 2;
    char *key = malloc(size);
    if (!key) return NULL;
    if (c->identity[0])
        snprintf(key, size, "%s%s\n%s", c->identity, options, source);
    else
        key[0] = 0;
    return key;
}

/* ---- open */

static void folder_find(program_cache *c)
{
    const char *on = getenv("CLATTN_CACHE");
    const char *why = on && !strcmp(on, "0") ? "CLATTN_CACHE is 0" : clattn__user_folder(c->folder, sizeof c->folder);
    if (why) snprintf(c->why, sizeof c->why, "%s", why);
}

clattn_status clattn__cache_open(program_cache *c, cl_device_id id)
{
    text t = {c->identity, sizeof c->identity, 0};
    bool is_cpu = false;
    const char *mib = getenv("CLATTN_CACHE_SIZE");
    char *end = NULL;
    errno = 0;
    const unsigned long long given = mib && *mib >= '0' && *mib <= '9' ? strtoull(mib, &end, 10) : 0;
    const bool is_good = end && !*end && !errno && given <= UINT64_MAX >> 20;
    c->most_bytes = (uint64_t)(is_good ? given : DEFAULT_MIB) << 20;
    text_add(&t, "clattn %s\n", clattn_version());
    const cl_int code = add_device(&t, id, &is_cpu);
    if (code != CL_INVALID_VALUE) RETURN_IF_CL("clGetDeviceInfo", code);
    const size_t before = t.length;
    add_host_cpu(&t);
    const size_t of_cpu = t.length - before;
    add_environment(&t);
    if (code == CL_INVALID_VALUE || (is_cpu && !of_cpu) || t.length >= t.size) {
        c->identity[0] = 0;
        snprintf(c->why, sizeof c->why, "what the device is, is not known");
    } else {
        folder_find(c);
    }
    return CLATTN_STATUS_SUCCESS;
}

void clattn__cache_close(program_cache *c)
{
    for (given_record *g = c->given, *next; g; g = next) {
        next = g->next;
        free(g->record.data);
        free(g);
    }
    c->given = NULL;
}

/* ---- the app's */

static given_record *given_find(const program_cache *c, const char *key, size_t length)
{
    given_record *g = c->given;
    while (g && !has_key(&g->record, key, length)) g = g->next;
    return g;
}

/* A record of its own for each of the app's, which are right; NULL when out of memory. */
static given_record *given_make(const program_record *r, const unsigned char *data)
{
    given_record *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    g->record.data = malloc(r->size);
    if (!g->record.data) {
        free(g);
        return NULL;
    }
    memcpy(g->record.data, data, r->size);
    record_read(g->record.data, r->size, &g->record);
    return g;
}

clattn_status clattn__cache_give(program_cache *c, const void *all, size_t size)
{
    const unsigned char *data = all;
    program_cache added = {.given = NULL};
    program_record r;
    int n = 0;
    for (size_t at = 0; at < size; at += r.size, n++) {
        const char *wrong = record_read(data + at, size - at, &r);
        RETURN_IF(wrong, INVALID_ARGUMENT, "record %d of data, at byte %zu of %zu, is %s", n, at, size, wrong);
    }
    for (size_t at = 0; at < size; at += r.size) {
        record_read(data + at, size - at, &r);
        given_record *g = given_make(&r, data + at);
        if (!g) {
            clattn__cache_close(&added);
            return clattn__fail(CLATTN_STATUS_OUT_OF_HOST_MEMORY, 0, "no room for a program's record of %zu bytes",
                                r.size);
        }
        g->next = added.given;
        added.given = g;
    }
    /* The later one counts: those of this call are in reverse, and go before those of earlier ones. */
    given_record **end = &added.given;
    while (*end) end = &(*end)->next;
    *end = c->given;
    c->given = added.given;
    for (given_record *g = c->given; g; g = g->next)
        for (given_record **at = &g->next; *at;) {
            given_record *other = *at;
            if (!has_key(&other->record, g->record.key, g->record.key_bytes)) {
                at = &other->next;
                continue;
            }
            *at = other->next;
            free(other->record.data);
            free(other);
        }
    return CLATTN_STATUS_SUCCESS;
}

/* ---- the disk */

/* Not strerror: that is one thread's at a time. */
static void say_error(char *to, size_t size, const char *what, const char *name)
{
    char error[128] = "";
    if (strerror_r(errno, error, sizeof error)) error[0] = 0;
    snprintf(to, size, "%s %s: %s", what, name, error);
}

static void file_name(const char *key, size_t length, char name[NAME_LENGTH + 1])
{
    snprintf(name, NAME_LENGTH + 1, "%016llx%016llx.bin", (unsigned long long)hash(hash_starts[0], key, length),
             (unsigned long long)hash(hash_starts[1], key, length));
}

/* 32 digits and this end. */
static bool is_ours(const char *name, const char *end)
{
    const size_t digits = strspn(name, "0123456789abcdef"), length = strlen(name), n = strlen(end);
    return digits == 32 && length >= 32 + n && !strcmp(name + length - n, end);
}

/* -1 and errno when it is not there. */
static int folder_open(const program_cache *c, bool create)
{
    char path[sizeof c->folder];
    memcpy(path, c->folder, sizeof path);
    for (char *at = path; create && *at; at++) {
        if (*at != '/' || at == path) continue;
        *at = 0;
        mkdir(path, 0700); /* what cannot be made cannot be opened */
        *at = '/';
    }
    if (create) mkdir(path, 0700);
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* All of a file that is the user's alone to write, to be freed; NULL and why. */
static unsigned char *file_read(int file, uint64_t most, size_t *size, char *why, size_t why_size)
{
    struct stat s;
    size_t n = 0;
    if (fstat(file, &s)) {
        say_error(why, why_size, "fstat", "");
        return NULL;
    }
    if (!S_ISREG(s.st_mode) || s.st_uid != geteuid() || s.st_mode & (S_IWGRP | S_IWOTH)) {
        snprintf(why, why_size, "no file of this user's alone");
        return NULL;
    }
    if (s.st_size <= 0 || (uint64_t)s.st_size > most || (uint64_t)s.st_size > SIZE_MAX) {
        snprintf(why, why_size, "%lld bytes long", (long long)s.st_size);
        return NULL;
    }
    unsigned char *data = malloc((size_t)s.st_size);
    for (ssize_t got = 1; data && n < (size_t)s.st_size && got; n += got > 0 ? (size_t)got : 0) {
        got = read(file, data + n, (size_t)s.st_size - n);
        if (got < 0 && errno != EINTR) break;
    }
    if (!data) snprintf(why, why_size, "no room for its %lld bytes", (long long)s.st_size);
    *size = n;
    return data;
}

static bool disk_find(const program_cache *c, const char *key, program_record *r, char *why, size_t why_size)
{
    const size_t length = strlen(key);
    char name[NAME_LENGTH + 1], reason[160] = "";
    const int folder = folder_open(c, false);
    file_name(key, length, name);
    const int file = folder < 0 ? -1 : openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 && errno == ENOENT)
        snprintf(why, why_size, "not on disk");
    else if (file < 0)
        say_error(why, why_size, "open", folder < 0 ? c->folder : name);
    if (folder >= 0) close(folder);
    if (file < 0) return false;
    size_t size = 0;
    program_record found = {.data = file_read(file, c->most_bytes, &size, reason, sizeof reason)};
    const char *wrong = found.data ? record_read(found.data, size, &found) : reason;
    if (!wrong && found.size != size) wrong = "longer than its record";
    if (!wrong && !has_key(&found, key, length)) wrong = "of another program";
    if (!wrong) futimens(file, NULL); /* in use: a folder that cannot be written has no need to know */
    close(file);
    if (!wrong) {
        *r = found;
        return true;
    }
    snprintf(why, why_size, "%s is %s", name, wrong);
    free(found.data);
    return false;
}

bool clattn__cache_find(const program_cache *c, program_origin origin, const char *key, program_record *r, char *why,
                        size_t why_size)
{
    if (!*key) return false;
    if (origin == FROM_DISK) return disk_find(c, key, r, why, why_size);
    const given_record *g = given_find(c, key, strlen(key));
    if (!g) return false;
    *r = g->record;
    r->data = NULL; /* stays the cache's */
    return true;
}

/* Drops files, longest unused first, until the rest is at most `most` bytes; and what writers that were ended left behind. */
static void folder_prune(int folder, uint64_t most)
{
    const int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        if (copy >= 0) close(copy);
        return;
    }
    for (bool more = true; more;) {
        char oldest[NAME_LENGTH + 1] = "";
        struct timespec oldest_time = {0, 0};
        uint64_t total = 0;
        rewinddir(dir);
        for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
            struct stat s;
            const bool is_temporary = is_ours(e->d_name, temporary_end);
            if (!is_temporary && (!is_ours(e->d_name, ".bin") || strlen(e->d_name) != NAME_LENGTH)) continue;
            if (fstatat(folder, e->d_name, &s, AT_SYMLINK_NOFOLLOW) || !S_ISREG(s.st_mode)) continue;
            if (is_temporary) {
                if (s.st_mtim.tv_sec < time(NULL) - STALE_SECONDS) unlinkat(folder, e->d_name, 0);
                continue;
            }
            total += (uint64_t)s.st_size;
            if (*oldest && (s.st_mtim.tv_sec > oldest_time.tv_sec ||
                            (s.st_mtim.tv_sec == oldest_time.tv_sec && s.st_mtim.tv_nsec >= oldest_time.tv_nsec)))
                continue;
            oldest_time = s.st_mtim;
            memcpy(oldest, e->d_name, sizeof oldest);
        }
        more = total > most && *oldest && (!unlinkat(folder, oldest, 0) || errno == ENOENT);
    }
    closedir(dir);
}

static bool write_all(int file, const unsigned char *data, size_t size)
{
    for (size_t n = 0; n < size;) {
        const ssize_t put = write(file, data + n, size - n);
        if (put < 0 && errno != EINTR) return false;
        n += put > 0 ? (size_t)put : 0;
    }
    return true;
}

bool clattn__cache_store(const program_cache *c, const program_record *r, char *what, size_t what_size)
{
    static atomic_uint count;
    char name[NAME_LENGTH + 1], temporary[128];
    struct timespec now = {0, 0};
    if (r->size > c->most_bytes) {
        snprintf(what, what_size, "its %zu bytes are more than the cache's %llu", r->size,
                 (unsigned long long)c->most_bytes);
        return false;
    }
    const int folder = folder_open(c, true);
    if (folder < 0) {
        say_error(what, what_size, "open", c->folder);
        return false;
    }
    file_name(r->key, r->key_bytes, name);
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(temporary, sizeof temporary, "%.32s.%ld.%ld.%u%s", name, (long)getpid(), now.tv_nsec,
             atomic_fetch_add(&count, 1), temporary_end);
    const int file = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool good = file >= 0 && write_all(file, r->data, r->size);
    if (file >= 0 && close(file)) good = false;
    good = good && !renameat(folder, temporary, folder, name);
    if (good)
        snprintf(what, what_size, "%zu bytes in %s/%s", r->size, c->folder, name);
    else
        say_error(what, what_size, "write", c->folder);
    if (!good && file >= 0) unlinkat(folder, temporary, 0);
    if (good) folder_prune(folder, c->most_bytes);
    close(folder);
    return good;
}
