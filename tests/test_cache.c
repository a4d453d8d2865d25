/* Built programs on disk and in the app's hands. This program starts itself anew for each process of a test, with the work
 * in CLATTN_TEST_CHILD: it prints the log's lines on builds and the bits of O. The test itself leaves OpenCL alone. */
#define _XOPEN_SOURCE 700
#include "harness.h"

#include <clattn/opencl.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROBLEM "f32 b1 hq2 hkv1 q5 kv19 d8"
#define OTHER_PROBLEM "f32 b1 hq2 hkv1 q5 kv19 d12"
enum { ROOM = 4 << 20, HEADER = 32, RACE_ROUNDS = 50, NO_DEVICE = 77 };

static uint64_t fnv(const void *data, size_t n)
{
    const unsigned char *at = data;
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++) h = (h ^ at[i]) * 0x100000001b3;
    return h;
}

static size_t slurp(const char *path, unsigned char *to)
{
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s cannot be read", path);
    const size_t n = fread(to, 1, ROOM, file);
    ck_assert_int_lt(n, ROOM);
    fclose(file);
    return n;
}

static void spill(const char *path, const void *data, size_t n)
{
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file && fwrite(data, 1, n, file) == n && fclose(file) == 0, "%s cannot be written", path);
    ck_assert_int_eq(chmod(path, 0600), 0);
}

/* ---- the child's side. It ends the process: 0 good, 77 no device. */

static void print_build(const char *kind, const char *text, void *user)
{
    (void)user;
    if (strcmp(kind, "build")) return;
    printf("log %s\n", text);
    fflush(stdout);
}

static void child_fail(const char *what)
{
    printf("wrong: %s: %s\n", what, clattn_last_error()->message);
    exit(1);
}

static void child_options(clattn_context_options *o)
{
    test_context_options(o);
    o->log = print_build;
    if (getenv("CLATTN_TEST_OFF")) o->program_cache = CLATTN_PROGRAM_CACHE_OFF;
}

static clattn_context *child_context(void)
{
    clattn_context *c;
    clattn_context_options o;
    child_options(&o);
    const clattn_status status = clattn_context_create(&o, &c);
    if (status == CLATTN_STATUS_NO_DEVICE && !o.device_name) exit(NO_DEVICE);
    if (status != CLATTN_STATUS_SUCCESS) child_fail("context");
    return c;
}

/* The last device of the first platform, on a cl_context of all of them. */
static clattn_context *child_context_of_all(void)
{
    cl_platform_id platform;
    cl_device_id devices[8];
    cl_uint n = 0;
    cl_int code;
    clattn_context *c = NULL;
    clattn_context_options o;
    child_options(&o);
    if (clGetPlatformIDs(1, &platform, NULL) || clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 8, devices, &n) || n < 2)
        exit(NO_DEVICE);
    cl_context cl = clCreateContext(NULL, n, devices, NULL, NULL, &code);
    if (code || clattn_context_create_from_cl(cl, devices[n - 1], &o, &c)) child_fail("context of all devices");
    clReleaseContext(cl);
    return c;
}

static clattn_plan *child_plan(clattn_context *c)
{
    clattn_problem p;
    clattn_plan *plan = NULL;
    clattn_plan_options o;
    const char *text = getenv("CLATTN_TEST_PROBLEM");
    clattn_plan_options_init(&o);
    o.path = CLATTN_PATH_DEVICE;
    o.kernel = CLATTN_KERNEL_ATTN_FWD_LANES;
    if (clattn_problem_from_text(text ? text : PROBLEM, &p) || clattn_plan_create(c, &p, &o, &plan)) child_fail("plan");
    return plan;
}

/* The bits of O, which are right. */
static uint64_t child_forward(clattn_plan *plan)
{
    const char *text = getenv("CLATTN_TEST_PROBLEM");
    test_data *t = test_data_from_text(text ? text : PROBLEM, 4);
    uint64_t bits = 0;
    test_reference(t);
    test_forward(t, plan);
    test_compare(t, "child");
    for (int64_t h = 0; h < t->p.n_heads_q; h++)
        for (int64_t i = 0; i < t->p.n_q; i++)
            for (int64_t d = 0; d < t->p.head_dim_v; d++)
                bits = (bits ^ test_get_bits(t, 'o', 0, h, i, d)) * 0x100000001b3;
    test_data_free(t);
    return bits;
}

/* Many times on a new context, now and then with the files gone before. */
static void child_race(const char *folder)
{
    uint64_t first = 0;
    for (int i = 0; i < RACE_ROUNDS; i++) {
        DIR *dir = i % 3 ? NULL : opendir(folder);
        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
            if (strstr(e->d_name, ".bin")) unlinkat(dirfd(dir), e->d_name, 0);
        if (dir) closedir(dir);
        clattn_context *c = child_context();
        clattn_plan *plan = child_plan(c);
        const uint64_t bits = child_forward(plan);
        if (i && bits != first) child_fail("other bits");
        first = bits;
        clattn_plan_release(plan);
        clattn_context_release(c);
    }
}

static void child_give(clattn_context *c, const char *path)
{
    static unsigned char data[ROOM];
    if (clattn_context_add_binaries(c, data, slurp(path, data))) child_fail("add_binaries");
}

static void child_take(const clattn_plan *plan, const char *path)
{
    static unsigned char data[ROOM];
    size_t needed = 0, again = 0;
    if (clattn_plan_get_binaries(plan, NULL, 0, &needed) || needed <= HEADER || needed > ROOM) child_fail("needed");
    if (clattn_plan_get_binaries(plan, data, ROOM, &again) || again != needed) child_fail("get_binaries");
    spill(path, data, needed);
    memset(data, 0x5a, ROOM);
    again = 5;
    if (clattn_plan_get_binaries(plan, data, needed - 1, &again) != CLATTN_STATUS_INVALID_ARGUMENT || again != 5 ||
        data[0] != 0x5a || data[needed - 2] != 0x5a || !strstr(clattn_last_error()->message, "the binaries take"))
        child_fail("too little room");
    if (clattn_plan_get_binaries(NULL, data, ROOM, &again) != CLATTN_STATUS_INVALID_ARGUMENT ||
        clattn_plan_get_binaries(plan, data, ROOM, NULL) != CLATTN_STATUS_INVALID_ARGUMENT)
        child_fail("NULL");
}

static void child_refused(clattn_context *c, const void *data, size_t size)
{
    if (clattn_context_add_binaries(c, data, size) != CLATTN_STATUS_INVALID_ARGUMENT ||
        !clattn_last_error()->message[0])
        child_fail("not refused");
}

/* Records cut and changed at every byte that counts, and at many others. */
static void child_refuse(clattn_context *c, const char *path)
{
    static unsigned char data[2 * ROOM];
    const size_t n = slurp(path, data);
    clattn_problem p;
    clattn_plan *plan = NULL;
    size_t needed = 5;
    child_refused(c, NULL, n);
    for (size_t cut = 1; cut < n; cut += cut < 64 || cut >= n - 64 ? 1 : 4099) child_refused(c, data, cut);
    for (size_t i = 0; i < n; i += i < 64 || i >= n - 64 ? 1 : 4099)
        for (int bit = 0; bit < 8; bit++) {
            data[i] ^= (unsigned char)(1 << bit);
            child_refused(c, data, n);
            data[i] ^= (unsigned char)(1 << bit);
        }
    memcpy(data + n, data, n); /* the second of two */
    child_refused(c, data, 2 * n - 1);
    child_refused(c, data, n + 3);
    if (clattn_context_add_binaries(c, NULL, 0)) child_fail("nothing");
    if (clattn_problem_from_text(PROBLEM, &p) || clattn_plan_create(test_host_context(), &p, NULL, &plan) ||
        clattn_plan_get_binaries(plan, NULL, 0, &needed) || needed)
        child_fail("the host's binaries");
    if (clattn_context_add_binaries(test_host_context(), data, n) != CLATTN_STATUS_NO_DEVICE) child_fail("host-only");
    clattn_plan_release(plan);
}

START_TEST(child)
{
    const char *work = getenv("CLATTN_TEST_CHILD"), *path = getenv("CLATTN_TEST_FILE");
    if (!strcmp(work, "race")) {
        child_race(path);
        exit(0);
    }
    clattn_context *c = strcmp(work, "all") ? child_context() : child_context_of_all();
    if (!strcmp(work, "refuse")) child_refuse(c, path);
    if (!strcmp(work, "give")) child_give(c, path);
    if (getenv("CLATTN_TEST_SECOND")) child_give(c, getenv("CLATTN_TEST_SECOND"));
    clattn_plan *plan = child_plan(c);
    printf("bits %016" PRIx64 "\n", child_forward(plan));
    if (!strcmp(work, "take")) child_take(plan, path);
    clattn_plan_release(plan);
    clattn_context_release(c);
    exit(0);
}
END_TEST

/* ---- processes and files of a test */

static char folder[64], good[128], other[128]; /* all tests'; records of PROBLEM and OTHER_PROBLEM */
static char bits[32];                          /* of PROBLEM */
static char cache[80];                         /* the test's own */
static char out[1 << 16];
static bool has_device;

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *at)
{
    (void)s, (void)type, (void)at;
    return remove(path);
}

static void remove_all(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

/* Runs the work with these assignments of the shell's; the output is in `out`. */
static int process(const char *assignments, const char *work)
{
    static char command[4096];
    snprintf(command, sizeof command, "%s CLATTN_TEST_CHILD=%s \"$CLATTN_TEST_SELF\" 2>&1", assignments, work);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    out[fread(out, 1, sizeof out - 1, pipe)] = 0;
    const int status = pclose(pipe);
    ck_assert_msg(WIFEXITED(status), "%s: %s", command, out);
    return WEXITSTATUS(status);
}

/* The same, which must go well, print nothing but what this program prints, and give the bits. */
static void good_process(const char *assignments, const char *work)
{
    const int status = process(assignments, work);
    ck_assert_msg(status == 0, "%s %s: status %d: %s", assignments, work, status, out);
    for (const char *line = out; *line; line = strchr(line, '\n') + 1)
        ck_assert_msg(!strncmp(line, "log ", 4) || !strncmp(line, "bits ", 5) || !strncmp(line, "Running ", 8),
                      "%s: %s", assignments, out);
    if (*bits) ck_assert_msg(strstr(out, bits) != NULL, "not %s: %s", bits, out);
}

/* One, on the test's own folder. */
static const char *run(void)
{
    static char assignments[256];
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_DIR='%s'", cache);
    good_process(assignments, "run");
    return out;
}

static void ck_from(const char *text, const char *why)
{
    ck_assert_msg(strstr(text, "attn_fwd_lanes ") && strstr(text, why), "no '%s' in: %s", why, text);
}

static void ck_not(const char *text, const char *part)
{
    ck_assert_msg(!strstr(text, part), "'%s' in: %s", part, text);
}

/* The one program in the cache; how many there are. */
static int only_file(const char *in, char path[256])
{
    int n = 0;
    DIR *dir = opendir(in);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        if (e->d_name[0] == '.') continue;
        n++;
        snprintf(path, 256, "%.128s/%.100s", in, e->d_name);
    }
    if (dir) closedir(dir);
    return n;
}

static char file[256]; /* of PROBLEM in the test's folder; record_put makes it */

static void record_put(const void *data, size_t n)
{
    unsigned char *record = malloc(ROOM);
    ck_assert_int_eq(mkdir(cache, 0700), 0);
    snprintf(file, sizeof file, "%s/%s", cache, strrchr(good, '/') + 1);
    spill(file, data ? data : record, data ? n : slurp(good, record));
    free(record);
}

static void keep(const char *problem, char path[128])
{
    char in[100], assignments[256], found[256];
    snprintf(in, sizeof in, "%s/%s", folder, path == good ? "good" : "other");
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_DIR='%s' CLATTN_TEST_PROBLEM='%s'", in, problem);
    good_process(assignments, "run");
    ck_from(out, "from source: not on disk");
    ck_assert_int_eq(only_file(in, found), 1);
    snprintf(path, 128, "%.127s", found);
}

static void suite_setup(void)
{
    char pocl[100], self[1024];
    self[readlink("/proc/self/exe", self, sizeof self - 1)] = 0;
    setenv("CLATTN_TEST_SELF", self, 1);
    strcpy(folder, "/tmp/clattn-cache-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(pocl, sizeof pocl, "%s/pocl", folder);
    ck_assert_int_eq(mkdir(pocl, 0700), 0);
    setenv("POCL_CACHE_DIR", pocl, 1);
    setenv("CLATTN_CACHE", "1", 1); /* main.c would have 0 */
    unsetenv("CLATTN_CACHE_SIZE");
    unsetenv("CLATTN_VERBOSE");
    has_device = process("CLATTN_CACHE=0", "run") != NO_DEVICE;
    if (!has_device) {
        test_skip("cache", "no OpenCL device");
        return;
    }
    keep(OTHER_PROBLEM, other);
    keep(PROBLEM, good);
    ck_assert_ptr_nonnull(strstr(out, "bits "));
    snprintf(bits, sizeof bits, "%.21s", strstr(out, "bits "));
}

static void suite_teardown(void) { remove_all(folder); }

static void setup(void)
{
    snprintf(cache, sizeof cache, "%s/cache", folder);
    remove_all(cache);
}

#define NEEDS_DEVICE                                                                                                   \
    if (!has_device) return

/* ---- tests */

START_TEST(second_process)
{
    NEEDS_DEVICE;
    struct stat s;
    char path[256];
    ck_from(run(), "from source: not on disk");
    ck_from(out, "attn_fwd_lanes kept on disk");
    ck_assert(!stat(cache, &s) && (s.st_mode & 0777) == 0700);
    ck_assert_int_eq(only_file(cache, path), 1);
    ck_assert(!stat(path, &s) && (s.st_mode & 0777) == 0600);
    ck_from(run(), "from disk");
    ck_not(out, "source");
    ck_not(out, "kept");
    /* What changes the driver's builds is in the key. */
    char assignments[256];
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_DIR='%s' POCL_EXTRA_BUILD_FLAGS=-DUNUSED=1", cache);
    good_process(assignments, "run");
    ck_from(out, "from source: not on disk");
}
END_TEST

/* The driver's own cache has nothing to do with it, and the binary is whole: the work-group function is in it. */
START_TEST(without_the_drivers)
{
    NEEDS_DEVICE;
    char assignments[512], pocl[128];
    snprintf(pocl, sizeof pocl, "%s/pocl", cache);
    record_put(NULL, 0);
    ck_assert_int_eq(mkdir(pocl, 0700), 0);
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_DIR='%s' POCL_CACHE_DIR='%s'", cache, pocl);
    good_process(assignments, "run");
    ck_from(out, "from disk");
}
END_TEST

typedef struct spoiled {
    const char *name, *says;
    int64_t size;     /* cut or zeros added; added to the size where it is negative; 0: as it is */
    int64_t at;       /* of a byte to change; from the end where it is negative; 0: none */
    bool checksummed; /* again */
    enum { RECORD_GOOD, RECORD_OTHER, RECORD_TEXT, RECORD_GARBAGE } which;
} spoiled;
static const spoiled spoils[] = {
    {"truncated to nothing", "0 bytes long", INT64_MIN, 0, false, RECORD_GOOD},
    {"truncated in its header", "truncated", 20, 0, false, RECORD_GOOD},
    {"truncated in its key", "truncated", 1000, 0, false, RECORD_GOOD},
    {"truncated by a byte", "truncated", -1, 0, false, RECORD_GOOD},
    {"longer", "longer", ROOM / 2, 0, false, RECORD_GOOD},
    {"swapped", "another program", 0, 0, false, RECORD_OTHER},
    {"foreign", "no program", 0, 0, false, RECORD_TEXT},
    {"flipped in its magic", "no program", 0, 1, false, RECORD_GOOD},
    {"of another format", "format version", 0, 8, true, RECORD_GOOD},
    {"flipped in its sizes", "truncated", 0, 23, true, RECORD_GOOD},
    {"flipped in its key", "checksum", 0, HEADER + 4, false, RECORD_GOOD},
    {"of another version of clattn", "another program", 0, HEADER + 7, true, RECORD_GOOD},
    {"flipped in its binary", "checksum", 0, -100, false, RECORD_GOOD},
    {"flipped in its checksum", "checksum", 0, -3, false, RECORD_GOOD},
    {"no binary of the driver's", "the binary was refused", 0, 0, true, RECORD_GARBAGE},
};
enum { N_SPOILS = sizeof spoils / sizeof *spoils };

START_TEST(spoiled_file)
{
    NEEDS_DEVICE;
    const spoiled *k = &spoils[_i];
    unsigned char *data = calloc(1, ROOM);
    size_t n = slurp(k->which == RECORD_OTHER ? other : good, data);
    uint64_t key_bytes;
    memcpy(&key_bytes, data + 16, sizeof key_bytes);
    if (k->which == RECORD_TEXT) memcpy(data, "hello, this is a text and no program", 36);
    if (k->which == RECORD_GARBAGE) memset(data + HEADER + key_bytes, 0x5a, n - HEADER - key_bytes - 8);
    if (k->at) data[k->at < 0 ? (int64_t)n + k->at : k->at] ^= 4;
    const uint64_t sum = fnv(data, n - 8);
    if (k->checksummed) memcpy(data + n - 8, &sum, 8);
    if (k->size) n = k->size == INT64_MIN ? 0 : k->size < 0 ? n - 1 : (size_t)k->size;
    record_put(data, n);
    free(data);
    ck_from(run(), "from source");
    ck_from(out, k->says);
    ck_from(out, "attn_fwd_lanes kept on disk");
    ck_from(run(), "from disk"); /* it was replaced */
}
END_TEST

static void make_link(void)
{
    ck_assert_int_eq(mkdir(cache, 0700), 0);
    ck_assert_int_eq(symlink(good, file), 0);
}
static void make_fifo(void)
{
    ck_assert_int_eq(mkdir(cache, 0700), 0);
    ck_assert_int_eq(mkfifo(file, 0600), 0);
}
static void make_writable(void)
{
    record_put(NULL, 0);
    ck_assert_int_eq(chmod(file, 0666), 0);
}
static void make_foreign(void)
{
    record_put(NULL, 0);
    if (!getuid()) ck_assert_int_eq(chown(file, 12345, 12345), 0);
    if (getuid()) ck_assert_int_eq(chmod(file, 0), 0);
}
static void (*const makers[])(void) = {make_link, make_fifo, make_writable, make_foreign};

/* Not read, and replaced; what a link points to is left alone. */
START_TEST(file_of_another_kind)
{
    NEEDS_DEVICE;
    struct stat before, after;
    snprintf(file, sizeof file, "%s/%s", cache, strrchr(good, '/') + 1);
    makers[_i]();
    ck_assert_int_eq(stat(good, &before), 0);
    ck_from(run(), "from source");
    ck_from(out, "attn_fwd_lanes kept on disk");
    ck_assert(!lstat(file, &after) && S_ISREG(after.st_mode) && (after.st_mode & 0777) == 0600);
    ck_assert(!stat(good, &after) && after.st_mtime == before.st_mtime && after.st_size == before.st_size);
    ck_from(run(), "from disk");
}
END_TEST

static const char *const no_folders[][2] = {
    {"CLATTN_CACHE_DIR=/proc/clattn", "not kept on disk"},
    {"CLATTN_CACHE_DIR=/dev/null", "not kept on disk"},
    {"CLATTN_CACHE_DIR=/dev/null/below", "not kept on disk"},
    {"CLATTN_CACHE_SIZE=0", "not kept on disk: its "},
    {"env -u HOME -u XDG_CACHE_HOME -u CLATTN_CACHE_DIR", "are not set"},
    {"env -u CLATTN_CACHE_DIR HOME=home XDG_CACHE_HOME=cache", "are not set"},
    {"CLATTN_CACHE_DIR= HOME= XDG_CACHE_HOME=", "are not set"},
    {"CLATTN_CACHE=0", "CLATTN_CACHE is 0"},
    {"CLATTN_TEST_OFF=1", "CLATTN_PROGRAM_CACHE_OFF"},
};
enum { N_NO_FOLDERS = sizeof no_folders / sizeof *no_folders };

START_TEST(no_folder)
{
    NEEDS_DEVICE;
    char path[256];
    setenv("CLATTN_CACHE_DIR", cache, 1);
    good_process(no_folders[_i][0], "run");
    ck_from(out, "from source");
    ck_from(out, no_folders[_i][1]);
    ck_not(out, "lanes kept");
    ck_assert_int_eq(only_file(cache, path), 0);
}
END_TEST

/* Programs there are used, touched or not; new ones are not kept. root may write anywhere. */
START_TEST(read_only_folder)
{
    NEEDS_DEVICE;
    char assignments[256];
    record_put(NULL, 0);
    ck_assert_int_eq(chmod(cache, 0500), 0);
    ck_from(run(), "from disk");
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_DIR='%s' CLATTN_TEST_PROBLEM='%s'", cache, OTHER_PROBLEM);
    const int status = process(assignments, "run");
    ck_assert_msg(status == 0, "%s", out);
    ck_from(out, "from source: not on disk");
    ck_from(out, getuid() ? "not kept on disk" : "attn_fwd_lanes kept on disk");
}
END_TEST

static const char *const places[][2] = {
    {"env -u CLATTN_CACHE_DIR HOME='%s'", "/.cache/clattn"},
    {"env -u CLATTN_CACHE_DIR HOME=/nowhere XDG_CACHE_HOME='%s'", "/clattn"},
    {"XDG_CACHE_HOME=/nowhere CLATTN_CACHE_DIR='%s'/a//b/", "/a/b"},
};

START_TEST(place)
{
    NEEDS_DEVICE;
    char assignments[256], in[256], path[256];
    snprintf(in, sizeof in, "%s%s", cache, places[_i][1]);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(assignments, sizeof assignments, places[_i][0], cache);
#pragma GCC diagnostic pop
    good_process(assignments, "run");
    ck_from(out, "from source: not on disk");
    ck_assert_int_eq(only_file(in, path), 1);
    good_process(assignments, "run");
    ck_from(out, "from disk");
}
END_TEST

/* Of files of 300 KiB each, in a cache of 1 MiB, the oldest go; others' files do not. A program that is used is young. */
START_TEST(size_bound)
{
    NEEDS_DEVICE;
    enum { FILES = 4, BYTES = 300 << 10 };
    char names[FILES][200], temporary[2][200], text[200], assignments[256];
    unsigned char *zeros = calloc(1, BYTES);
    struct stat s;
    const struct timespec old[2] = {{1000000000, 0}, {1000000000, 0}};
    record_put(NULL, 0);
    for (int i = 0; i < FILES; i++) {
        const struct timespec times[2] = {{1100000000 - i, 0}, {1100000000 - i, 0}};
        snprintf(names[i], sizeof names[i], "%s/%032x.bin", cache, i);
        spill(names[i], zeros, BYTES);
        ck_assert_int_eq(utimensat(AT_FDCWD, names[i], times, 0), 0);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(temporary[i], sizeof temporary[i], "%s/%032x.1.2.3.tmp", cache, i);
        spill(temporary[i], zeros, 5);
    }
    snprintf(text, sizeof text, "%s/text", cache);
    spill(text, zeros, BYTES);
    ck_assert_int_eq(utimensat(AT_FDCWD, temporary[0], old, 0), 0);
    ck_assert_int_eq(utimensat(AT_FDCWD, text, old, 0), 0);
    ck_assert_int_eq(utimensat(AT_FDCWD, file, old, 0), 0); /* the oldest, until it is used */
    ck_from(run(), "from disk");
    ck_assert(!stat(file, &s) && s.st_mtime > 1200000000);
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_SIZE=1 CLATTN_CACHE_DIR='%s' CLATTN_TEST_PROBLEM='%s'",
             cache, OTHER_PROBLEM);
    ck_assert_int_eq(process(assignments, "run"), 0);
    ck_from(out, "attn_fwd_lanes kept on disk");
    ck_assert(!stat(file, &s) && !stat(names[0], &s) && !stat(text, &s) && !stat(temporary[1], &s));
    ck_assert(stat(names[FILES - 1], &s) && stat(names[FILES - 2], &s) && stat(temporary[0], &s));
    ck_from(run(), "from disk");
    free(zeros);
}
END_TEST

START_TEST(race)
{
    NEEDS_DEVICE;
    char assignments[1024], path[256];
    unsigned char *data = malloc(ROOM);
    snprintf(assignments, sizeof assignments,
             "export CLATTN_CACHE_DIR='%s' CLATTN_TEST_FILE='%s'; cd '%s'; work() { CLATTN_TEST_CHILD=race "
             "\"$CLATTN_TEST_SELF\"; }; "
             "work >race1 2>&1 & first=$!; work >race2 2>&1; status=$?; cat race1 race2; wait $first && test $status = "
             "0 && :",
             cache, cache, folder);
    const int status = process(assignments, "run");
    ck_assert_msg(status == 0, "%s", out);
    ck_from(out, "from disk");
    ck_from(out, "from source: not on disk");
    ck_not(out, " is "); /* damaged, truncated, of another program */
    ck_not(out, "refused");
    ck_not(out, "wrong");
    ck_assert_int_eq(only_file(cache, path), 1); /* and nothing temporary */
    const size_t n = slurp(path, data);
    uint64_t sum;
    memcpy(&sum, data + n - 8, 8);
    ck_assert(sum == fnv(data, n - 8));
    ck_from(run(), "from disk");
    free(data);
}
END_TEST

/* ---- the app's own */

static const char *with_file(const char *name)
{
    static char assignments[512];
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE=0 CLATTN_TEST_FILE='%s/%s'", folder, name);
    return assignments;
}

START_TEST(taken_and_given)
{
    NEEDS_DEVICE;
    char two[128], assignments[512];
    good_process(with_file("blob"), "take");
    ck_from(out, "from source: CLATTN_CACHE is 0");
    good_process(with_file("blob"), "give");
    ck_from(out, "from the app");
    ck_not(out, "source");
    /* A file is a record, and records one after the other are what clattn_context_add_binaries takes. */
    unsigned char *data = malloc(2 * ROOM);
    const size_t n = slurp(other, data), m = slurp(good, data + n);
    snprintf(two, sizeof two, "%s/two", folder);
    spill(two, data, n + m);
    good_process(with_file("two"), "give");
    ck_from(out, "from the app");
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE=0 CLATTN_TEST_FILE='%s'", other);
    good_process(assignments, "give"); /* of no use */
    ck_from(out, "from source: CLATTN_CACHE is 0");
    /* Before the disk; what came from there is not kept again. */
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE_DIR='%s' CLATTN_TEST_FILE='%s'", cache, two);
    good_process(assignments, "give");
    ck_from(out, "from the app");
    ck_not(out, "kept");
    free(data);
}
END_TEST

START_TEST(given_garbage)
{
    NEEDS_DEVICE;
    unsigned char *data = malloc(ROOM);
    char path[128];
    const size_t n = slurp(good, data);
    uint64_t key_bytes;
    memcpy(&key_bytes, data + 16, sizeof key_bytes);
    memset(data + HEADER + key_bytes, 0x5a, n - HEADER - key_bytes - 8);
    const uint64_t sum = fnv(data, n - 8);
    memcpy(data + n - 8, &sum, 8);
    snprintf(path, sizeof path, "%s/garbage", folder);
    spill(path, data, n);
    good_process(with_file("garbage"), "give");
    ck_from(out, "from source: the binary was refused");
    char both[512]; /* what comes later counts */
    snprintf(both, sizeof both, "CLATTN_CACHE=0 CLATTN_TEST_FILE='%s' CLATTN_TEST_SECOND='%s'", path, good);
    good_process(both, "give");
    ck_from(out, "from the app");
    free(data);
}
END_TEST

START_TEST(refused)
{
    NEEDS_DEVICE;
    char assignments[512];
    snprintf(assignments, sizeof assignments, "CLATTN_CACHE=0 CLATTN_TEST_FILE='%s'", good);
    good_process(assignments, "refuse");
    ck_from(out, "from source: CLATTN_CACHE is 0");
}
END_TEST

/* A cl_context of several devices, of which the program is built for one. */
START_TEST(one_of_several_devices)
{
    NEEDS_DEVICE;
    char assignments[512];
    snprintf(assignments, sizeof assignments, "POCL_DEVICES='basic pthread' CLATTN_CACHE_DIR='%s'", cache);
    if (process(assignments, "all") == NO_DEVICE) {
        test_skip("one_of_several_devices", "one device");
        return;
    }
    ck_from(out, "from source: not on disk");
    ck_from(out, "attn_fwd_lanes kept on disk");
    good_process(assignments, "all");
    ck_from(out, "from disk");
}
END_TEST

Suite *test_suite(void)
{
    Suite *suite = suite_create("cache");
    if (getenv("CLATTN_TEST_CHILD")) {
        setenv("CK_FORK", "no", 1);
        tcase_add_test(test_case(suite, "child"), child);
        return suite;
    }
    TCase *disk = test_case(suite, "disk");
    tcase_add_unchecked_fixture(disk, suite_setup, suite_teardown);
    tcase_add_checked_fixture(disk, setup, NULL);
    tcase_add_test(disk, second_process);
    tcase_add_test(disk, without_the_drivers);
    tcase_add_loop_test(disk, spoiled_file, 0, N_SPOILS);
    tcase_add_loop_test(disk, file_of_another_kind, 0, sizeof makers / sizeof *makers);
    tcase_add_loop_test(disk, no_folder, 0, N_NO_FOLDERS);
    tcase_add_test(disk, read_only_folder);
    tcase_add_loop_test(disk, place, 0, sizeof places / sizeof *places);
    tcase_add_test(disk, size_bound);
    tcase_add_test(disk, race);
    tcase_add_test(disk, taken_and_given);
    tcase_add_test(disk, given_garbage);
    tcase_add_test(disk, refused);
    tcase_add_test(disk, one_of_several_devices);
    return suite;
}
