/* The program, from outside: exit codes, the one line on stderr, files in and out. CLATTN_TEST_PROGRAM is its path,
 * CLATTN_TEST_DATA that of tests/data. */
#define _XOPEN_SOURCE 700
#include "harness.h"

#include <dirent.h>
#include <ftw.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#if CLATTN_TEST_PNG
#include <png.h>
#endif

/* ---- a folder of its own for each test, with files in it */

static char folder[64], out[65536], err[65536];

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *at)
{
    (void)s, (void)type, (void)at;
    return remove(path);
}

static void spill(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0, "%s cannot be written", path);
}

static size_t slurp(const char *path, void *data, size_t room)
{
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s cannot be read", path);
    const size_t n = fread(data, 1, room, file);
    fclose(file);
    return n;
}

static bool exists(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0;
}

static int count_files(void)
{
    int n = 0;
    DIR *d = opendir(".");
    ck_assert_ptr_nonnull(d);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}

/* A version 1.0 file with this dictionary. */
static size_t npy_text(char *to, const char *descr, const char *order, const char *shape)
{
    const int n = sprintf(to + 10, "{'descr': %s, 'fortran_order': %s, 'shape': %s, }", descr, order, shape);
    size_t length = 10 + (size_t)n;
    while ((length + 1) % 64) to[length++] = ' ';
    to[length++] = '\n';
    memcpy(to, "\x93NUMPY\x01\x00", 8);
    to[8] = (char)((length - 10) & 0xff);
    to[9] = (char)((length - 10) >> 8);
    return length;
}

static void npy(const char *path, const char *descr, const char *order, const char *shape, const void *data,
                size_t bytes)
{
    static char whole[65536];
    const size_t header = npy_text(whole, descr, order, shape);
    if (bytes) memcpy(whole + header, data, bytes);
    spill(path, whole, header + bytes);
}

enum {
    HEADS = 2,
    ROWS = 3,
    KEYS = 5,
    DIM = 4,
    BATCH = 2,
    Q = BATCH * HEADS * ROWS * DIM,
    K = BATCH * HEADS * KEYS * DIM
};
static float q[Q], k[K], v[K];
static const float bias[HEADS * KEYS] = {0.5F, -1, 2, 0, 1, -0.25F, 3, -2, 0.125F, 1};
static const double row_bias[ROWS] = {1, -1, 0.5}, all_sinks[HEADS] = {1, -0.5};
static const unsigned char seen[ROWS * KEYS] = {1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1};
static const float slopes[BATCH * HEADS] = {0.5F, 0.25F, 1, 0.125F};

static void setup(void)
{
    const int64_t lengths[3] = {5, 2, 1}, offsets[2] = {1, -1};
    const int64_t too_long[2] = {5, 6}, negative[2] = {-1, 3}, cu_q[3] = {0, 4, 6}, falls[4] = {0, 5, 4, 6};
    const int32_t cu_kv[3] = {0, 3, 10};
    uint32_t x = 3;
    strcpy(folder, "/tmp/clattn-cli-XXXXXX");
    ck_assert(mkdtemp(folder) && chdir(folder) == 0);
    float *const all[] = {q, k, v};
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < (t ? K : Q); i++) {
            x = x * 1664525U + 1013904223U;
            all[t][i] = (float)(x >> 8) * 0x1p-22F - 2;
        }
    npy("q.npy", "'<f4'", "False", "(2, 2, 3, 4)", q, sizeof q);
    npy("k.npy", "'<f4'", "False", "(2, 2, 5, 4)", k, sizeof k);
    npy("v.npy", "'<f4'", "False", "(2, 2, 5, 4)", v, sizeof v);
    npy("len.npy", "'<i8'", "False", "(2,)", lengths, 16);
    npy("len3.npy", "'<i8'", "False", "(3,)", lengths, 24);
    npy("len2d.npy", "'<i8'", "False", "(2, 1)", lengths, 16);
    npy("lenf.npy", "'<f8'", "False", "(2,)", lengths, 16);
    npy("long.npy", "'<i8'", "False", "(2,)", too_long, 16);
    npy("negative.npy", "'<i8'", "False", "(2,)", negative, 16);
    npy("off.npy", "'<i8'", "False", "(2,)", offsets, 16);
    npy("bias.npy", "'<f4'", "False", "(2, 1, 5)", bias, sizeof bias);
    npy("row_bias.npy", "'<f8'", "False", "(3, 1)", row_bias, sizeof row_bias);
    npy("mask.npy", "'|b1'", "False", "(3, 5)", seen, sizeof seen);
    npy("slopes.npy", "'<f4'", "False", "(2,)", slopes, sizeof slopes / BATCH);
    npy("all_slopes.npy", "'<f4'", "False", "(2, 2)", slopes, sizeof slopes);
    npy("sinks.npy", "'<f8'", "False", "(2,)", all_sinks, sizeof all_sinks);
    npy("none.npy", "'<f4'", "False", "(2, 2, 0, 4)", NULL, 0);
    npy("pq.npy", "'<f4'", "False", "(6, 2, 4)", q, sizeof q); /* packed: [total, heads, dim] */
    npy("pk.npy", "'<f4'", "False", "(10, 2, 4)", k, sizeof k);
    npy("pv.npy", "'<f4'", "False", "(10, 2, 4)", v, sizeof v);
    npy("cu_q.npy", "'<i8'", "False", "(3,)", cu_q, sizeof cu_q);
    npy("cu_kv.npy", "'<i4'", "False", "(3,)", cu_kv, sizeof cu_kv);
    npy("falls.npy", "'<i8'", "False", "(4,)", falls, sizeof falls);
    ck_assert(mkdir("sub", 0777) == 0);
}

static void teardown(void)
{
    ck_assert(chdir("/") == 0);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- running it: a line for the shell, in which CLATTN is the program and DATA the data */

static int run(const char *line)
{
    static char command[8192];
    snprintf(command, sizeof command, "CLATTN='%s'; DATA='%s'; { %s; } >.out 2>.err </dev/null", CLATTN_TEST_PROGRAM,
             CLATTN_TEST_DATA, line);
    const int status = system(command);
    out[slurp(".out", out, sizeof out - 1)] = 0;
    err[slurp(".err", err, sizeof err - 1)] = 0;
    unlink(".out");
    unlink(".err");
    ck_assert_msg(WIFEXITED(status), "%s: did not exit", line);
    return WEXITSTATUS(status);
}

static int clattn(const char *arguments)
{
    static char line[4096];
    snprintf(line, sizeof line, "\"$CLATTN\" %s", arguments);
    return run(line);
}

static void expect_good(const char *arguments)
{
    const int code = clattn(arguments);
    ck_assert_msg(code == 0, "%s: %d: %s", arguments, code, err);
    ck_assert_msg(!*err, "%s: said on stderr: %s", arguments, err);
}

/* This code and one line on stderr with this in it. */
static void expect_refused(const char *arguments, int code, const char *says)
{
    const int files = count_files();
    const int got = clattn(arguments);
    ck_assert_msg(got == code, "%s: %d, not %d: %s", arguments, got, code, err);
    const char *end = strchr(err, '\n');
    ck_assert_msg(!strncmp(err, "clattn: ", 8) && end && !end[1], "%s: not one line: %s", arguments, err);
    ck_assert_msg(strstr(err, says) != NULL, "%s: '%s' lacks '%s'", arguments, err, says);
    ck_assert_msg(!*out, "%s: said on stdout: %s", arguments, out);
    ck_assert_msg(count_files() == files, "%s: left files behind", arguments);
}

#define FORWARD "forward --q q.npy --k k.npy --v v.npy -o o.npy "
#define PACKED "forward --q pq.npy --k pk.npy --v pv.npy -o o.npy "
#define PACKED_KV PACKED "--cu-seqlens-q cu_q.npy --cu-seqlens-kv "
#define PROBLEM "'f32 b1 hq2 hkv2 q64 kv64 d16' "

#if CLATTN_HAVE_OPENCL
#define OPENCL_SAYS(text) text
#else
#define OPENCL_SAYS(text) "built without OpenCL"
#endif

#if CLATTN_TEST_PNG
#define PNG_SAYS(text) text
#else
#define PNG_SAYS(text) "without libpng"
#endif

typedef struct usage_case {
    const char *arguments;
    int code;
    const char *says;
} usage_case;
static const usage_case usages[] = {
    {"nosuch", 2, "nosuch"},
    {"forward", 2, "-o"},
    {"forward -o o.npy", 2, "--q"},
    {"forward -o o.npy --q q.npy", 2, "--k"},
    {"forward -o o.npy --q q.npy --k k.npy", 2, "--v"},
    {"forward --q q.npy --k k.npy --v v.npy", 2, "-o"},
    {FORWARD "--nope 1", 2, "--nope"},
    {FORWARD "--nope=1", 2, "--nope"},
    {FORWARD "--caus", 2, "--caus"},
    {FORWARD "-x", 2, "-x"},
    {FORWARD "more", 2, "more"},
    {FORWARD "--q", 2, "--q"},
    {FORWARD "--q=", 2, "--q"},
    {FORWARD "--scale", 2, "--scale"},
    {FORWARD "--causal=1", 2, "--causal"},
    {FORWARD "--scale x", 2, "--scale x"},
    {FORWARD "--scale nan", 2, "--scale nan"},
    {FORWARD "--scale=inf", 2, "--scale inf"},
    {FORWARD "--window 1", 2, "--window 1"},
    {FORWARD "--window 1,2,3", 2, "--window 1,2,3"},
    {FORWARD "--window=-2,0", 2, "--window -2,0"},
    {FORWARD "--window 1,x", 2, "--window 1,x"},
    {FORWARD "--dtype f8", 2, "--dtype f8"},
    {FORWARD "--layout sbhd", 2, "--layout sbhd"},
    {FORWARD "--path cpu", 2, "--path cpu"},
    {FORWARD "--kernel fast", 2,
     "--kernel fast: it must be one of auto, host_tile, attn_fwd, attn_fwd_lanes, host_decode, "
     "attn_decode_lanes, host_backward, attn_bwd_lanes, attn_bwd, attn_fwd_mma, attn_decode"},
    {FORWARD "--threads 0", 2, "--threads 0"},
    {FORWARD "--threads x", 2, "--threads x"},
    {FORWARD "--threads 1e3", 2, "--threads 1e3"},
    {FORWARD "--block-q 0", 2, "--block-q 0"},
    {FORWARD "--block-kv=-1", 2, "--block-kv -1"},
    {FORWARD "--block-kv 99999999999999999999", 2, "--block-kv 99999999999999999999"},
    {FORWARD "--path device --device nosuch", 2, "--device nosuch"},
    {FORWARD "--path device --device 99", 2, "--device 99"},
    {FORWARD "--path host --kernel attn_fwd", 2, "--kernel attn_fwd"},
    {FORWARD "--q-offset gone.npy", 2, "--q-offset gone.npy"},
    {FORWARD "--q-offset 1.5", 2, "--q-offset 1.5"},
    {FORWARD "--q-offset lenf.npy", 2, "--q-offset lenf.npy"},
    {FORWARD "--q-offset len3.npy", 2, "--q-offset len3.npy"},
    {FORWARD "--kv-len gone.npy", 2, "--kv-len gone.npy"},
    {FORWARD "--kv-len lenf.npy", 2, "--kv-len lenf.npy"},
    {FORWARD "--kv-len len3.npy", 2, "--kv-len len3.npy"},
    {FORWARD "--kv-len len2d.npy", 2, "--kv-len len2d.npy"},
    {FORWARD "--kv-len long.npy", 2, "--kv-len long.npy"},
    {FORWARD "--kv-len negative.npy", 2, "--kv-len negative.npy"},
    {FORWARD "--bias mask.npy", 2, "f2, f4 or f8"},
    {FORWARD "--bias slopes.npy", 2, "shape [2] does not broadcast to [2, 2, 3, 5]"},
    {FORWARD "--mask bias.npy", 2, "b1"},
    {FORWARD "--alibi row_bias.npy", 2, "shape [3, 1]; it must be [2] or [2, 2]"},
    {FORWARD "--alibi mask.npy", 2, "f4 or f8"},
    {FORWARD "--sinks all_slopes.npy", 2, "shape [2, 2]; it must be [2]"},
    {FORWARD "--softcap=-1", 2, "--softcap -1"},
    {FORWARD "--dropout 1", 2, "--dropout 1"},
    {PACKED "--cu-seqlens-q cu_q.npy", 2, "--cu-seqlens-kv is missing"},
    {PACKED "--cu-seqlens-kv cu_kv.npy", 2, "--cu-seqlens-q is missing"},
    {PACKED "--cu-seqlens-q falls.npy --cu-seqlens-kv cu_kv.npy", 2, "it decreases from 5 to 4 at number 2"},
    {PACKED_KV "cu_q.npy", 2, "from 0 to 10"},
    {PACKED_KV "slopes.npy", 2, "i8 or i4"},
    {PACKED_KV "cu_kv.npy --kv-len len.npy", 2, "--kv-len len.npy"},
    {PACKED_KV "cu_kv.npy --layout bshd", 2, "--layout bshd"},
    {FORWARD "--map m.png --map-head 2", 2, PNG_SAYS("--map-head 2: there are 2 heads")},
    {FORWARD "--map m.png --map-batch 2", 2, PNG_SAYS("--map-batch 2: the batch is 2")},
    {"forward --q q.npy --k none.npy --v none.npy -o o.npy --map m.png", 2, PNG_SAYS("3 queries and 0 keys")},
    {FORWARD "--lse o.npy", 2, "--lse o.npy"},
    {FORWARD "--lse sub", 2, "--lse sub"},
    {FORWARD "-o nowhere/o.npy", 2, "-o nowhere/o.npy"},
    {FORWARD "-o sub", 2, "-o sub"},
    {FORWARD "-o /dev/full", 2, "-o /dev/full"},
    {FORWARD "--json", 2, "--json"},
    {"bench", 2, "problem"},
    {"bench 'f32 q3'", 2, "hq"},
    {"bench 'f32 hq1 q1 kv1 d1 zzz'", 2, "'zzz'"},
    {"bench 'f32 hq3 hkv2 q1 kv1 d1'", 2, "n_heads_q is 3"},
    {"bench " PROBLEM "--budget 0", 2, "--budget"},
    {"bench " PROBLEM "--budget x", 2, "--budget x"},
    {"bench " PROBLEM "--pass sideways", 2, "--pass sideways"},
    {"bench " PROBLEM "--plot nowhere/p.svg", 2, "--plot nowhere/p.svg"},
    {"bench " PROBLEM "--plot sub", 2, "--plot sub"},
    {"bench " PROBLEM "--resident --path host", 2, OPENCL_SAYS("--path host")},
    {"bench " PROBLEM "--resident --copies", 2, OPENCL_SAYS("--copies")},
    {"bench 'f32 hq1 d8 varlen=3,5' --plot p.svg", 2, "varlen"},
    {"bench " PROBLEM "--plot p.svg --path device --device nosuch", 2, "--device nosuch"},
    {"forward --q q.npy --k k.npy --v v.npy -o q.npy", 2, "same file as --q"},
    {"backward --q q.npy --k k.npy --v v.npy --do q.npy", 2, "--dq"},
    {"backward --q q.npy --k k.npy --v v.npy --dq o.npy", 2, "--do"},
    {"backward --q q.npy --k k.npy --v v.npy --do q.npy --dbias o.npy", 2, "--dbias"},
    {"backward --q q.npy --k k.npy --v v.npy --do q.npy --dq v.npy", 2, "same file as --v"},
    {"bench " PROBLEM "'f32 hq1 q1 kv1 d1'", 2, "f32 hq1 q1 kv1 d1"},
    {"bench " PROBLEM "--q q.npy", 2, "--q"},
    {"compare --causal", 2, "--q"},
    {"compare " PROBLEM "--q q.npy", 2, "--q"},
    {"compare --q q.npy --k k.npy", 2, "--v"},
    {"devices --json", 2, "--json"},
    {"devices more", 2, "more"},
    {"selftest --device nosuch", 2, "--device nosuch"},
    {"tune", 2, OPENCL_SAYS("no place for the table")},
    {"tune --dry-run --device nosuch", 2, OPENCL_SAYS("--device nosuch")},
    {"tune --dry-run --budget 0", 2, OPENCL_SAYS("--budget 0")},
    {"tune --dry-run " PROBLEM "'f32 q3'", 2, OPENCL_SAYS("hq")},
    {"tune --dry-run 'f32 hq1 q9 kv9 d8 alibi'", 2, OPENCL_SAYS("Q, K and V alone")},
    {"tune --dry-run 'f32 hq1 q0 kv9 d8'", 2, OPENCL_SAYS("nothing to time")},
    {"tune -o sub", 2, OPENCL_SAYS("-o sub")},
    {"tune -o nowhere/t.txt", 2, OPENCL_SAYS("-o nowhere/t.txt")},
    {"tune -o q.npy", 2, OPENCL_SAYS("q.npy: it is there, and no tuning table")},
};
enum { N_USAGES = sizeof usages / sizeof *usages };

START_TEST(usage_refused)
{
    expect_refused(usages[_i].arguments, usages[_i].code, usages[_i].says);
    ck_assert(!exists("o.npy"));
}
END_TEST

START_TEST(no_command)
{
    ck_assert_int_eq(clattn(""), 2);
    ck_assert_ptr_nonnull(strstr(err, "usage: clattn"));
    ck_assert_str_eq(out, "");
}
END_TEST

START_TEST(help_and_version)
{
    static const char *const lines[] = {
        "--help", "-h", "forward --help", "bench --help", "compare -h", "devices --help", "selftest --help", "tune -h"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        expect_good(lines[i]);
        ck_assert_ptr_nonnull(strstr(out, "usage: clattn"));
    }
    expect_good("--version");
    ck_assert_str_eq(out, "clattn 0.1.0\n");
}
END_TEST

START_TEST(stdout_that_is_full)
{
    ck_assert_int_eq(run("\"$CLATTN\" devices >/dev/full"), 1);
    ck_assert_ptr_nonnull(strstr(err, "standard output"));
}
END_TEST

/* ---- bad files, as each of --q, --k, --v */

typedef struct file_case {
    const char *descr, *order, *shape; /* descr NULL: see the test */
    int64_t bytes;                     /* of data */
    int code;
    const char *says;
} file_case;
static const file_case files[] = {
    {"'<f4'", "True", "(2, 2, 5, 4)", 320, 2, "Fortran"},
    {"'>f4'", "False", "(2, 2, 5, 4)", 320, 2, "big-endian"},
    {"'<i4'", "False", "(2, 2, 5, 4)", 320, 2, "i4"},
    {"'|b1'", "False", "(2, 2, 5, 4)", 80, 2, "must be"},
    {"'<c8'", "False", "(2, 2, 5, 4)", 640, 2, "type"},
    {"[('a', '<f4')]", "False", "(2, 2, 5, 4)", 320, 2, "records"},
    {"'<f4'", "False", "(2, 10, 4)", 320, 2, "3 dimensions"},
    {"'<f4'", "False", "(1, 2, 2, 5, 4)", 320, 2, "5 dimensions"},
    {"'<f4'", "False", "()", 4, 2, "0 dimensions"},
    {"'<f4'", "False", "(2, 2, 5, 4)", 319, 2, "truncated"},
    {"'<f4'", "False", "(2, 2, 5, 4)", 0, 2, "truncated"},
    {"'<f4'", "False", "(2, 2, 5, 4)", 324, 2, "324"},
    {"'<f4'", "False", "(2, 2, 500000000000, 4)", 320, 2, "truncated"},
    {"'<f4'", "False", "(2, 2, 5, 4611686018427387904)", 320, 2, "2^63"},
    {"'<f4'", "False", "(2, 2, 5, 99999999999999999999)", 320, 2, "2^63"},
    {"'<f4'", "False", "(2, 2, 5, -4)", 320, 2, "shape"},
    {"'<f4'", "False", "(2, 2, 5, 4.0)", 320, 2, "shape"},
    {"'<f4'", "False", "[2, 2, 5, 4]", 320, 2, "shape"},
    {"'<f4'", "Maybe", "(2, 2, 5, 4)", 320, 2, "fortran_order"},
    {"'<f4'", "False", "(2, 0, 5, 4)", 0, 2, "heads 0"},
    {"'<f4'", "False", "(2, 2, 5, 0)", 0, 2, "dim 0"},
    {"'<f4'", "False", "(0, 2, 5, 4)", 0, 2, "batch 0"},
};
enum { N_FILES = sizeof files / sizeof *files };

START_TEST(file_refused)
{
    static const char zeros[1024];
    const file_case *c = &files[_i];
    npy("bad.npy", c->descr, c->order, c->shape, zeros, (size_t)c->bytes);
    for (int t = 0; t < 3; t++) {
        char arguments[128], name[32];
        snprintf(arguments, sizeof arguments, "forward --q %s --k %s --v %s -o o.npy", t == 0 ? "bad.npy" : "q.npy",
                 t == 1 ? "bad.npy" : "k.npy", t == 2 ? "bad.npy" : "v.npy");
        expect_refused(arguments, c->code, c->says);
        snprintf(name, sizeof name, "--%c bad.npy", "qkv"[t]);
        ck_assert_msg(strstr(err, name) != NULL, "'%s' lacks '%s'", err, name);
    }
    ck_assert(!exists("o.npy"));
}
END_TEST

/* Whole dictionaries; says NULL: it is read. */
static const struct {
    const char *text, *says;
} headers[] = {
    {"{\"descr\": \"<f4\", \"fortran_order\":False,\t\"shape\":(2,2,5,4)}", NULL},
    {" {'shape': (2, 2, 5, 4,), 'fortran_order': False, 'descr': '=f4', } \r\n ", NULL},
    {"('descr': '<f4')", "no dictionary"},
    {"{'descr': '<f4' 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "no dictionary"},
    {"{'descr' '<f4', 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "no dictionary"},
    {"{descr: '<f4', 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "no dictionary"},
    {"{'descr", "no dictionary"},
    {"{'descr': <f4, 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "'descr' is no string"},
    {"{'descr': '<f4\", 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "type that is not read"},
    {"{'descr': '<\\f4', 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "'descr' is no string"},
    {"{'descr': '<f4\n', 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "'descr' is no string"},
    {"{'descr': 'f4', 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "type that is not read"},
    {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 2, 5, 4)}", "neither True nor False"},
    {"{'descr': '<f4', 'fortran_order': Fals", "neither True nor False"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 2, 5, 4)}", "'shape' is no tuple"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (80)}", "'shape' is no tuple"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (80", "'shape' is no tuple"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (", "no whole number"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,2,2,5,4)}", "more than 8 dimensions"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 5, 9223372036854775808)}", "beyond 2^63"},
    {"{'descr': '<f4', 'fortran_order': False}", "lacks one of"},
    {"{}", "lacks one of"},
    {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 5, 4)}", "key twice"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 5, 4), 'more': 1}", "a key that is not"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 5, 4)} more", "goes on after"},
};
enum { N_HEADERS = sizeof headers / sizeof *headers };

/* Of version 1.0 and of 2.0, whose length has four bytes. */
START_TEST(dictionary)
{
    const char *text = headers[_i].text;
    const size_t length = strlen(text);
    for (int version = 1; version <= 2; version++) {
        static char whole[1024];
        const size_t at = version == 1 ? 10 : 12;
        memset(whole, 0, sizeof whole);
        memcpy(whole, "\x93NUMPY", 6);
        whole[6] = (char)version;
        whole[8] = (char)length;
        memcpy(whole + at, text, length);
        memcpy(whole + at + length, k, sizeof k);
        spill("h.npy", whole, at + length + sizeof k);
        if (headers[_i].says)
            expect_refused("forward --q q.npy --k h.npy --v v.npy -o o.npy", 2, headers[_i].says);
        else
            expect_good("forward --q q.npy --k h.npy --v v.npy -o o.npy --path host");
    }
}
END_TEST

START_TEST(file_of_anything)
{
    static char whole[4096];
    const size_t n = slurp("q.npy", whole, sizeof whole);
    ck_assert_uint_eq(n, 128 + sizeof q);
    expect_refused("forward --q gone.npy --k k.npy --v v.npy -o o.npy", 2, "--q gone.npy");
    expect_refused("forward --q sub --k k.npy --v v.npy -o o.npy", 2, "--q sub");
    for (size_t length = 0; length < n; length += length < 16 ? 1 : 37) { /* cut at any place */
        spill("bad.npy", whole, length);
        expect_refused("forward --q bad.npy --k k.npy --v v.npy -o o.npy", 2, "--q bad.npy");
    }
    for (size_t at = 0; at < 12; at++) { /* one byte of the beginning changed */
        whole[at] = (char)(whole[at] ^ 0x40);
        spill("bad.npy", whole, n);
        whole[at] = (char)(whole[at] ^ 0x40);
        expect_refused("forward --q bad.npy --k k.npy --v v.npy -o o.npy", 2, "--q bad.npy");
    }
    spill("bad.npy", "It was the best of times, it was the worst of times\n", 52);
    expect_refused("forward --q bad.npy --k k.npy --v v.npy -o o.npy", 2, "no .npy file");
    ck_assert(mkfifo("fifo", 0600) == 0);
    expect_refused("forward --q fifo --k k.npy --v v.npy -o o.npy", 2, "--q fifo");
}
END_TEST

START_TEST(larger_than_memory)
{
    char header[1024];
    const size_t n = npy_text(header, "'<f4'", "False", "(1, 1, 268435456, 64)"); /* 64 GiB, all of them a hole */
    spill("huge.npy", header, n);
    if (getenv("ASAN_OPTIONS")) {
        test_skip("larger_than_memory", "a sanitizer's address space has no limit");
        return;
    }
    expect_refused("bench 'f32 b1000000 hq1000000 q1000000 kv1 d1'", 1, "memory");
    if (truncate("huge.npy", (off_t)n + ((off_t)64 << 30))) {
        test_skip("larger_than_memory", "no sparse file of 64 GiB in /tmp");
        return;
    }
    const int code = run("ulimit -v 4000000; \"$CLATTN\" forward --q huge.npy --k k.npy --v v.npy -o o.npy");
    ck_assert_msg(code == 1 && strstr(err, "huge.npy") && strstr(err, "memory"), "%d: %s", code, err);
    ck_assert(!exists("o.npy"));
}
END_TEST

START_TEST(files_that_disagree)
{
    static const char zeros[1024];
    npy("k7.npy", "'<f4'", "False", "(2, 2, 5, 7)", zeros, 560);
    npy("k3.npy", "'<f4'", "False", "(2, 3, 5, 4)", zeros, 480);
    npy("b1.npy", "'<f4'", "False", "(1, 2, 5, 4)", zeros, 160);
    npy("half.npy", "'<f2'", "False", "(2, 2, 5, 4)", zeros, 160);
    expect_refused("forward --q q.npy --k k7.npy --v v.npy -o o.npy", 2, "--k k7.npy");
    expect_refused("forward --q q.npy --k k3.npy --v k3.npy -o o.npy", 2, "--k k3.npy");
    expect_refused("forward --q q.npy --k b1.npy --v v.npy -o o.npy", 2, "--k b1.npy");
    expect_refused("forward --q q.npy --k k.npy --v q.npy -o o.npy", 2, "--v q.npy");
    expect_refused("forward --q q.npy --k half.npy --v v.npy -o o.npy", 2, "--k half.npy");
    expect_refused("forward --q q.npy --k k.npy --v half.npy -o o.npy", 2, "--v half.npy");
    expect_good("forward --q q.npy --k half.npy --v v.npy --dtype f32 -o o.npy"); /* makes them one */
}
END_TEST

/* ---- good runs */

typedef struct good_case {
    const char *flags;
    int64_t window_left, window_right, query_offset;
    double scale;
    int per_batch; /* 1: len.npy, 2: off.npy */
} good_case;
static const good_case goods[] = {
    {"", -1, -1, 0, CLATTN_SCALE_AUTO, 0},
    {"--causal", -1, 0, 0, CLATTN_SCALE_AUTO, 0},
    {"--causal --q-offset 2", -1, 0, 2, CLATTN_SCALE_AUTO, 0},
    {"--causal --q-offset=-1", -1, 0, -1, CLATTN_SCALE_AUTO, 0},
    {"--window 1,0", 1, 0, 0, CLATTN_SCALE_AUTO, 0},
    {"--window=0,2 --scale 0.25", 0, 2, 0, 0.25, 0},
    {"--window -1,1", -1, 1, 0, CLATTN_SCALE_AUTO, 0},
    {"--window 2,3 --causal", 2, 0, 0, CLATTN_SCALE_AUTO, 0},
    {"--scale=0", -1, -1, 0, 0, 0},
    {"--scale -1.5", -1, -1, 0, -1.5, 0},
    {"--kv-len len.npy", -1, -1, 0, CLATTN_SCALE_AUTO, 1},
    {"--q-offset off.npy --causal", -1, 0, 0, CLATTN_SCALE_AUTO, 2},
    {"--path host --threads 1 --block-q 2 --block-kv 3", -1, -1, 0, CLATTN_SCALE_AUTO, 0},
    {"--path=device --kernel=attn_fwd --causal", -1, 0, 0, CLATTN_SCALE_AUTO, 0},
    {"--path device --device 0 --kernel attn_fwd_lanes", -1, -1, 0, CLATTN_SCALE_AUTO, 0},
};
enum { N_GOODS = sizeof goods / sizeof *goods };

static bool device_missing(const char *flags)
{
    int count = 0;
    return strstr(flags, "device") && (clattn_device_count(&count) || count == 0);
}

START_TEST(forward_is_right)
{
    const good_case *c = &goods[_i];
    const int64_t lengths[2] = {5, 2}, offsets[2] = {1, -1};
    static char whole[4096];
    char arguments[256];
    float o[Q], lse[Q / DIM];
    double ref_o[Q], ref_lse[Q / DIM];
    clattn_problem p;
    if (!CLATTN_HAVE_OPENCL && device_missing(c->flags)) {
        test_skip("forward_is_right", "no OpenCL device");
        return;
    }
    clattn_problem_init(&p, CLATTN_DTYPE_F32, BATCH, HEADS, HEADS, ROWS, KEYS, DIM);
    p.mask.window_left = c->window_left;
    p.mask.window_right = c->window_right;
    p.query_offset = c->query_offset;
    p.scale = c->scale;
    p.kv_length_per_batch = c->per_batch == 1;
    p.query_offset_per_batch = c->per_batch == 2;
    ck_assert_int_eq(test_reference_forward(&p, q, k, v, lengths, offsets, ref_o, ref_lse), CLATTN_STATUS_SUCCESS);
    snprintf(arguments, sizeof arguments, FORWARD "--lse l.npy %s", c->flags);
    expect_good(arguments);
    ck_assert_str_eq(out, "");
    ck_assert_uint_eq(slurp("o.npy", whole, sizeof whole), 128 + sizeof o);
    ck_assert_ptr_nonnull(strstr(whole + 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 3, 4), }"));
    memcpy(o, whole + 128, sizeof o);
    ck_assert_uint_eq(slurp("l.npy", whole, sizeof whole), 128 + sizeof lse);
    ck_assert_ptr_nonnull(strstr(whole + 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 3), }"));
    memcpy(lse, whole + 128, sizeof lse);
    for (int i = 0; i < Q; i++)
        ck_assert_msg(fabs(o[i] - ref_o[i]) < 5e-6, "%s: O[%d] is %g, not %g", c->flags, i, (double)o[i], ref_o[i]);
    for (int i = 0; i < Q / DIM; i++)
        ck_assert_msg((double)lse[i] == ref_lse[i] || fabs(lse[i] - ref_lse[i]) < 1e-5, "%s: LSE[%d] is %g, not %g",
                      c->flags, i, (double)lse[i], ref_lse[i]);
}
END_TEST

/* ---- what stands beside the scores, and packed sequences, from files */

typedef struct beside_case {
    const char *flags, *problem; /* of problem text */
} beside_case;
static const beside_case beside[] = {
    {"--bias bias.npy", "bias=1,h,1,kv"},
    {"--bias row_bias.npy", "bias=1,1,q,1:f64"},
    {"--mask mask.npy", "mask=1,1,q,kv"},
    {"--softcap 0.75", "softcap=0.75"},
    {"--alibi slopes.npy", "alibi"},
    {"--alibi all_slopes.npy", "alibi=per-batch"},
    {"--sinks sinks.npy", "sinks"},
    {"--softcap=2 --bias bias.npy --mask mask.npy --alibi slopes.npy --sinks sinks.npy --causal",
     "softcap=2 bias=1,h,1,kv mask=1,1,q,kv alibi sinks causal"},
    {"--cu-seqlens-q cu_q.npy --cu-seqlens-kv cu_kv.npy --sinks sinks.npy", "varlen=4,2:3,7 sinks"},
};
enum { N_BESIDE = sizeof beside / sizeof *beside };

START_TEST(beside_the_scores)
{
    const beside_case *c = &beside[_i];
    const float sinks[HEADS] = {(float)all_sinks[0], (float)all_sinks[1]};
    float o[Q];
    double ref_o[Q], ref_lse[Q / DIM];
    static char whole[4096];
    char text[512];
    uint64_t no_seed;
    int64_t cu_q[BATCH + 1], cu_kv[BATCH + 1];
    clattn_problem p;
    clattn_forward_args args;
    snprintf(text, sizeof text, "f32 hq2 hkv2 d4 %s %s", strstr(c->problem, "varlen") ? "" : "b2 q3 kv5", c->problem);
    test_ok(clattn_problem_from_text(text, &p));
    test_ok(clattn_problem_text_args(text, &no_seed, cu_q, cu_kv));
    clattn_forward_args_init(&args);
    args.q = clattn_host_buffer(q), args.k = clattn_host_buffer(k), args.v = clattn_host_buffer(v);
    args.bias = p.bias.dtype == CLATTN_DTYPE_F64 ? clattn_host_buffer(row_bias) : clattn_host_buffer(bias);
    args.mask = clattn_host_buffer(seen);
    args.alibi_slopes = clattn_host_buffer(slopes);
    args.sinks = clattn_host_buffer(sinks);
    args.cu_seqlens_q = clattn_host_buffer(cu_q), args.cu_seqlens_kv = clattn_host_buffer(cu_kv);
    test_ok(clattn_reference_forward(&p, &args, ref_o, ref_lse));
    snprintf(text, sizeof text, "%s --path host %s", p.varlen ? PACKED : FORWARD, c->flags);
    expect_good(text);
    ck_assert_uint_eq(slurp("o.npy", whole, sizeof whole), 128 + sizeof o);
    memcpy(o, whole + 128, sizeof o);
    for (int i = 0; i < Q; i++) {
        /* the reference's rows are [heads, total] */
        const int at = p.varlen ? (i / DIM / HEADS + i / DIM % HEADS * 6) * DIM + i % DIM : i;
        ck_assert_msg(fabs(o[i] - ref_o[at]) < 5e-6, "%s: O[%d] is %g, not %g", text, i, (double)o[i], ref_o[at]);
    }
}
END_TEST

/* ---- the map: how many pixels have a color */

#if CLATTN_TEST_PNG
static int64_t map_pixels(int red, int green, int blue, int *width)
{
    png_image image = {.version = PNG_IMAGE_VERSION};
    ck_assert_msg(png_image_begin_read_from_file(&image, "m.png"), "%s", image.message);
    image.format = PNG_FORMAT_RGB;
    unsigned char *pixels = malloc(PNG_IMAGE_SIZE(image));
    ck_assert_ptr_nonnull(pixels);
    ck_assert_msg(png_image_finish_read(&image, NULL, pixels, 0, NULL), "%s", image.message);
    int64_t n = 0;
    for (size_t i = 0; i < PNG_IMAGE_SIZE(image); i += 3)
        n += pixels[i] == red && pixels[i + 1] == green && pixels[i + 2] == blue;
    *width = (int)image.width;
    free(pixels);
    return n;
}

enum { CELL = 640 / KEYS * (640 / KEYS), SWATCH = 24 * 24 };

static void map_is(const char *arguments, int hidden_cells, int nan_cells)
{
    int width;
    expect_good(arguments);
    const int64_t hidden = map_pixels(205, 205, 205, &width), nan = map_pixels(214, 39, 40, &width);
    ck_assert_int_gt(width, 640);
    ck_assert_msg(hidden == (hidden_cells ? hidden_cells * CELL + SWATCH : 0), "%s: %d pixels hidden", arguments,
                  (int)hidden);
    ck_assert_msg(nan == (nan_cells ? nan_cells * CELL + SWATCH : 0), "%s: %d pixels NaN", arguments, (int)nan);
}
#endif

START_TEST(map)
{
#if CLATTN_TEST_PNG
    static const char *const steps[] = {"scaled", "capped", "masked", "probs"};
    static float many[4000 * DIM];
    float nan_row[Q];
    char arguments[256];
    int width;
    for (int i = 0; i < 4; i++) {
        snprintf(arguments, sizeof arguments, FORWARD "--causal --map m.png --map-head 1 --map-batch 1 --map-step %s",
                 steps[i]);
        map_is(arguments, i < 2 ? 0 : 4 + 3 + 2, 0);
    }
    map_is(FORWARD "--map m.png", 0, 0);
    /* Row 0 sees key 0 alone: a prob of 1, the lightest color. The legend's bar begins with it. */
    expect_good(FORWARD "--causal --map m.png");
    ck_assert_int_eq(map_pixels(253, 231, 37, &width) / CELL, 1);
    memcpy(nan_row, q, sizeof q);
    nan_row[DIM] = NAN; /* query 1 of the first head */
    npy("q.npy", "'<f4'", "False", "(2, 2, 3, 4)", nan_row, sizeof nan_row);
    map_is(FORWARD "--causal --map m.png", 4 + 3 + 2, 2);
    /* 4000 keys are pooled, 3 to a cell. */
    npy("k.npy", "'<f4'", "False", "(1, 1, 4000, 4)", many, sizeof many);
    npy("q.npy", "'<f4'", "False", "(1, 1, 3, 4)", q, sizeof q / 4);
    expect_good("forward --q q.npy --k k.npy --v k.npy -o o.npy --map m.png");
    ck_assert_int_gt(map_pixels(253, 231, 37, &width), 1334 * 32);
    ck_assert_int_gt(width, 1334);
    ck_assert_int_lt(width, 1334 + 640);
#else
    expect_refused(FORWARD "--map m.png", 2, "without libpng");
#endif
}
END_TEST

START_TEST(both_flag_forms)
{
    static char a[1024], b[1024];
    expect_good("forward --q q.npy --k k.npy --v v.npy -o o.npy --window 1,2 --scale 0.5 --path host");
    expect_good("forward --q=q.npy --k=k.npy --v=v.npy -o=p.npy --window=1,2 --scale=0.5 --path=host");
    const size_t n = slurp("o.npy", a, sizeof a);
    ck_assert_uint_eq(n, 128 + sizeof q);
    ck_assert(slurp("p.npy", b, sizeof b) == n && !memcmp(a, b, n));
}
END_TEST

START_TEST(forward_bshd)
{
    static float t[K], whole[1024];
    float want[Q];
    expect_good(FORWARD "--causal --path host");
    slurp("o.npy", whole, sizeof whole);
    memcpy(want, (char *)whole + 128, sizeof want);
    const float *const from[] = {q, k, v};
    static const char *const names[] = {"q.npy", "k.npy", "v.npy"};
    for (int x = 0; x < 3; x++) {
        const int seq = x ? KEYS : ROWS;
        for (int b = 0; b < BATCH; b++)
            for (int h = 0; h < HEADS; h++)
                for (int i = 0; i < seq; i++)
                    memcpy(t + ((b * seq + i) * HEADS + h) * DIM, from[x] + ((b * HEADS + h) * seq + i) * DIM,
                           DIM * sizeof *t);
        npy(names[x], "'<f4'", "False", x ? "(2, 5, 2, 4)" : "(2, 3, 2, 4)", t,
            (size_t)(BATCH * HEADS * seq * DIM) * 4);
    }
    expect_good(FORWARD "--causal --path host --layout bshd");
    slurp("o.npy", whole, sizeof whole);
    ck_assert_ptr_nonnull(strstr((char *)whole + 10, "'shape': (2, 3, 2, 4)"));
    const float *o = (const float *)((char *)whole + 128);
    for (int b = 0; b < BATCH; b++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < ROWS * DIM; i++)
                ck_assert(o[((b * ROWS + i / DIM) * HEADS + h) * DIM + i % DIM] ==
                          want[(b * HEADS + h) * ROWS * DIM + i]);
}
END_TEST

typedef struct dtype_case {
    const char *name, *descr;
    size_t bytes;
} dtype_case;
static const dtype_case dtypes[] = {
    {"f32", "'<f4'", 4}, {"f16", "'<f2'", 2}, {"bf16", "'<f4'", 4}, {"f64", "'<f8'", 8}};

START_TEST(forward_dtypes)
{
    static char whole[4096];
    char arguments[128], want[32];
    snprintf(arguments, sizeof arguments, FORWARD "--dtype %s", dtypes[_i].name);
    expect_good(arguments);
    ck_assert_uint_eq(slurp("o.npy", whole, sizeof whole), 128 + Q * dtypes[_i].bytes);
    snprintf(want, sizeof want, "'descr': %s", dtypes[_i].descr);
    ck_assert_ptr_nonnull(strstr(whole + 10, want));
}
END_TEST

START_TEST(explain)
{
    expect_good(FORWARD "--explain --path host");
    ck_assert_ptr_nonnull(strstr(out, "kernel host_decode"));
    ck_assert_ptr_nonnull(strstr(out, "asked for"));
}
END_TEST

static const char *const ways[3] = {"--path host", "--path device --kernel attn_fwd_lanes",
                                    "--path device --kernel attn_fwd"};

/* Real Q, K and V: scaled scores of -70 to 79. */
START_TEST(forward_minilm)
{
    enum { HEADER = 128, COUNT = 12 * 512 * 32 };
    static float got[32 + COUNT], want[32 + COUNT];
    char arguments[512];
    double most = 0;
    if (device_missing(ways[_i])) {
        test_skip("forward_minilm", "no OpenCL device");
        return;
    }
    snprintf(arguments, sizeof arguments,
             "forward --q \"$DATA/minilm/l0_q.npy\" --k \"$DATA/minilm/l0_k.npy\" --v=\"$DATA/minilm/l0_v.npy\" "
             "-o o.npy %s",
             ways[_i]);
    expect_good(arguments);
    ck_assert_uint_eq(slurp("o.npy", got, sizeof got), sizeof got);
    ck_assert_uint_eq(slurp(CLATTN_TEST_DATA "/minilm/l0_o.npy", want, sizeof want), sizeof want);
    ck_assert_ptr_nonnull(strstr((char *)got + 10, "'shape': (1, 12, 512, 32)"));
    for (int i = 32; i < 32 + COUNT; i++) {
        const double error = fabs((double)got[i] - (double)want[i]);
        if (!(error <= most)) most = error;
    }
    ck_assert_msg(most <= 5e-6, "%s: off by %g", ways[_i], most);
}
END_TEST

/* ---- outputs: whole or not at all */

START_TEST(output_untouched_on_failure)
{
    static char whole[1024];
    static const char real[] = "ulimit -f 1; \"$CLATTN\" forward --q \"$DATA/minilm/l0_q.npy\" "
                               "--k \"$DATA/minilm/l0_k.npy\" --v \"$DATA/minilm/l0_v.npy\" -o o.npy --lse l.npy";
    static const char *const failing[] = {
        "\"$CLATTN\" forward --q q.npy --k k.npy --v len.npy -o o.npy --lse l.npy",
        "\"$CLATTN\" forward --q q.npy --k k.npy --v v.npy -o o.npy --lse nowhere/l.npy",
        "ulimit -f 0; \"$CLATTN\" forward --q q.npy --k k.npy --v v.npy -o o.npy --lse l.npy",
        real,
    };
    const int want[] = {2, 2, 1, 1};
    spill("o.npy", "old", 3);
    const int before = count_files();
    static char line[1024];
    snprintf(line, sizeof line, "(%s) 2>&1 | cat", failing[_i]); /* through a pipe, for ulimit cuts files */
    run(line);
    ck_assert_msg(!strncmp(out, "clattn: ", 8), "%s", out);
    snprintf(line, sizeof line, "(%s) >/dev/null 2>&1", failing[_i]);
    ck_assert_int_eq(run(line), want[_i]);
    ck_assert_uint_eq(slurp("o.npy", whole, sizeof whole), 3);
    ck_assert(!memcmp(whole, "old", 3) && !exists("l.npy"));
    ck_assert_msg(count_files() == before, "a temporary file is left");
}
END_TEST

START_TEST(output_replaces)
{
    static char whole[1024];
    struct stat s;
    spill("o.npy", "old", 3);
    ck_assert(chmod("o.npy", 0640) == 0 && symlink("o.npy", "link.npy") == 0);
    const int before = count_files();
    expect_good("forward --q q.npy --k k.npy --v v.npy -o link.npy");
    ck_assert_uint_eq(slurp("o.npy", whole, sizeof whole), 128 + sizeof q);
    ck_assert(lstat("link.npy", &s) == 0 && S_ISLNK(s.st_mode));
    ck_assert(stat("o.npy", &s) == 0 && (s.st_mode & 0777) == 0640);
    ck_assert_int_eq(count_files(), before);
}
END_TEST

/* ---- the other commands */

START_TEST(devices_listed)
{
    int count = 0;
    expect_good("devices");
    ck_assert_ptr_nonnull(strstr(out, "host"));
    ck_assert_int_eq(clattn_device_count(&count), CLATTN_STATUS_SUCCESS);
    for (int i = 0; i < count; i++) {
        clattn_device_info info;
        clattn_device_info_init(&info);
        ck_assert_int_eq(clattn_device_get_info(i, &info), CLATTN_STATUS_SUCCESS);
        ck_assert_msg(strstr(out, info.name) && strstr(out, info.platform), "%s is not in: %s", info.name, out);
        if (info.usable) ck_assert_ptr_nonnull(strstr(out, clattn_kernel_name(info.kernel)));
    }
}
END_TEST

START_TEST(without_devices)
{
    ck_assert(mkdir("empty", 0777) == 0);
    const char *in_front = "OCL_ICD_VENDORS=\"$PWD/empty\"; export OCL_ICD_VENDORS; ";
    char line[512];
    snprintf(line, sizeof line, "%s \"$CLATTN\" devices", in_front);
    ck_assert_int_eq(run(line), 0);
    ck_assert_msg(strstr(out, "no OpenCL device") && strstr(out, "host") && !*err, "%s%s", out, err);
    snprintf(line, sizeof line, "%s \"$CLATTN\" " FORWARD, in_front);
    ck_assert_int_eq(run(line), 0);
    snprintf(line, sizeof line, "%s \"$CLATTN\" " FORWARD "--path device", in_front);
    ck_assert_int_eq(run(line), 2);
    ck_assert_ptr_nonnull(strstr(err, "--path device"));
    snprintf(line, sizeof line, "%s \"$CLATTN\" compare " PROBLEM, in_front);
    ck_assert_msg(run(line) == 0, "%s", err);
    snprintf(line, sizeof line, "%s \"$CLATTN\" selftest", in_front);
    ck_assert_msg(run(line) == 0 && strstr(out, " 0 failed"), "%s%s", out, err);
}
END_TEST

static double number_of(const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(out, quoted);
    ck_assert_msg(at != NULL, "no %s in %s", quoted, out);
    char *end;
    const double x = strtod(at + strlen(quoted), &end);
    ck_assert_msg(end != at + strlen(quoted) && (*end == ',' || *end == '}'), "%s is no number in %s", key, out);
    return x;
}

START_TEST(bench_json)
{
    char arguments[256];
    const char *const kernels[] = {"host_tile", "attn_fwd_lanes", "attn_fwd"};
    const bool causal = _i >= 3;
    if (device_missing(ways[_i % 3])) {
        test_skip("bench_json", "no OpenCL device");
        return;
    }
    snprintf(arguments, sizeof arguments, "bench 'f32 b2 hq4 hkv2 q64 kv96 d32%s' --json --budget 0.05 %s %s",
             causal ? " causal" : "", ways[_i % 3], causal ? "--cold" : "");
    expect_good(arguments);
    const size_t n = strlen(out);
    ck_assert_msg(out[0] == '{' && n > 2 && !strcmp(out + n - 2, "}\n") && strchr(out, '\n') == out + n - 1, "%s", out);
    char want[160];
    snprintf(want, sizeof want, "\"problem\": \"f32 b2 hq4 hkv2 q64 kv96 d32%s\"", causal ? " causal" : "");
    ck_assert_msg(strstr(out, want) != NULL, "%s lacks %s", out, want);
    snprintf(want, sizeof want, "\"kernel\": \"%s\"", kernels[_i % 3]);
    ck_assert_msg(strstr(out, want) != NULL, "%s lacks %s", out, want);
    ck_assert_ptr_nonnull(strstr(out, _i % 3 ? "\"path\": \"device\"" : "\"path\": \"host\""));
    ck_assert_ptr_nonnull(strstr(out, "\"device\": \""));
    const double median = number_of("median_s"), least = number_of("min_s");
    const double pairs = causal ? 64 * 65 / 2.0 : 64 * 96.0;
    const double gflops = 4 * 2 * 4 * pairs * 32 * 1e-9 / median;
    const double bytes = 2.0 * 2 * (causal ? 64 : 96) * 64 * 4;
    ck_assert(median > 0 && least > 0 && least <= median && median < 10);
    ck_assert_msg(number_of("runs") >= 7, "%s", out);
    ck_assert_msg(_i % 3 ? number_of("threads") == 0 : number_of("threads") >= 1, "%s", out);
    ck_assert_msg(fabs(number_of("gflops") / gflops - 1) < 1e-4, "%s: not %g", out, gflops);
    ck_assert_msg(fabs(number_of("gbs") / (bytes * 1e-9 / median) - 1) < 1e-4, "%s: not %g", out,
                  bytes / median * 1e-9);
}
END_TEST

/* Every tensor that a text can ask for, of each pass. */
START_TEST(bench_resident)
{
    static const char *const problems[] = {
        "f16 b2 hq4 hkv2 q20 kv48 d16 causal alibi sinks bias=1,h,q,kv:f32 mask=b,1,1,kv bshd",
        "f32 b3 hq2 hkv1 q20 kv48 d16 offset=per-batch kvlen=per-batch dropout=0.1",
        "f32 hq2 hkv1 d16 varlen=3,0:5,17"};
    char arguments[256];
    const char *pass = _i ? "backward" : "forward";
    if (device_missing("device")) {
        test_skip("bench_resident", "no OpenCL device");
        return;
    }
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        snprintf(arguments, sizeof arguments, "bench '%s' --resident --pass %s --budget 0.01 --json", problems[i],
                 pass);
        expect_good(arguments);
        ck_assert_msg(strstr(out, "\"path\": \"device\"") && strstr(out, "\"memory\": \"device\""), "%s", out);
        ck_assert(number_of("median_s") > 0);
    }
    snprintf(arguments, sizeof arguments, "bench " PROBLEM "--resident --cold --pass %s --budget 0.01", pass);
    expect_good(arguments);
    ck_assert_msg(strstr(out, "tensors in the device's memory") != NULL, "%s", out);
    snprintf(arguments, sizeof arguments, "bench " PROBLEM "--copies --path device --pass %s --budget 0.01", pass);
    expect_good(arguments);
    ck_assert_msg(strstr(out, "tensors in host memory") != NULL, "%s", out);
}
END_TEST

START_TEST(bench_in_words)
{
    expect_good("bench " PROBLEM "--budget 0.05 --path host");
    ck_assert(strstr(out, "host_tile") && strstr(out, "median") && strstr(out, "GFLOP/s"));
}
END_TEST

static int count_of(const char *text, const char *part)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)); at += strlen(part)) n++;
    return n;
}

/* On a terminal, which script(1) makes: the bar is drawn and taken away again. */
START_TEST(progress_bar)
{
    if (run("command -v script >/dev/null")) {
        test_skip("progress_bar", "no script(1)");
        return;
    }
    ck_assert_int_eq(run("script -qec \"'$CLATTN' bench " PROBLEM "--path host --budget 1.2\" /dev/null"), 0);
    ck_assert_msg(strstr(out, "\rbench [###") != NULL, "%s", out);
    ck_assert_msg(strstr(out, "\r\033[K") && strstr(strstr(out, "\r\033[K"), "median"), "%s", out);
}
END_TEST

/* Lengths 16, 32, 64 and 70 on each path, in a file that replaces another; then few rows, which stay. */
START_TEST(bench_plot)
{
    static char svg[65536];
    const bool has_device = !device_missing("device");
    spill("p.svg", "old", 3);
    const int before = count_files();
    expect_good("bench 'f32 b1 hq2 hkv1 q35 kv70 d16 causal offset=35' --plot p.svg --budget 0.02 --json");
    ck_assert_int_eq(count_files(), before);
    svg[slurp("p.svg", svg, sizeof svg - 1)] = 0;
    ck_assert_msg(!strncmp(svg, "<svg ", 5) && strstr(svg, "</svg>\n"), "%s", svg);
    ck_assert(strstr(svg, ">f32 b1 hq2 hkv1 q35 kv70 d16 causal offset=35<") && strstr(svg, "host path: host_tile"));
    ck_assert(strstr(svg, "roofline") && strstr(svg, "peak") && strstr(svg, "GFLOP/s") && strstr(svg, "%<"));
    ck_assert_int_eq(count_of(out, "\"path\": \"host\""), 4);
    ck_assert(strstr(out, "q16 kv32 d16 causal offset=16\"") && strstr(out, "q35 kv70 d16 causal offset=35\""));
    ck_assert(number_of("peak_gflops") > 0 && !strstr(out, "peak_gbs") && number_of("share") > 0);
    if (has_device) ck_assert(strstr(svg, "device path: ") && strstr(out, "\"path\": \"device\""));

    expect_good("bench 'f32 b1 hq2 hkv1 q3 kv40 d16' --plot q.svg --budget 0.02 --path host --cold --json");
    ck_assert(number_of("peak_gbs") > 0);
    ck_assert(strstr(out, "q3 kv16") && strstr(out, "q3 kv32") && strstr(out, "q3 kv40"));
    ck_assert(!strstr(out, "\"path\": \"device\""));
    svg[slurp("q.svg", svg, sizeof svg - 1)] = 0;
    ck_assert(strstr(svg, "host path: host_decode") && !strstr(svg, "device path") && strstr(svg, "n_q = 3"));
}
END_TEST

#define TUNED "'f32 b1 hq1 hkv1 q40 kv40 d16' "

/* The second process takes what the first has found, a third changes it, and what is others' stays. */
START_TEST(tune)
{
    static char table[8192], again[9000];
    clattn_device_info info;
    if (device_missing("device") || !test_device_info(&info)) {
        test_skip("tune", "no OpenCL device");
        return;
    }
    const int before = count_files();
    expect_good("tune " TUNED TUNED "--dry-run --budget 1"); /* one line of both */
    ck_assert_msg(count_of(out, "\ntile ") == 1, "%s", out);
    ck_assert_int_eq(run("CLATTN_TUNING= CLATTN_CACHE_DIR=c \"$CLATTN\" tune " TUNED "--dry-run --budget 0.1"), 0);
    ck_assert_int_eq(count_files(), before);

    ck_assert_int_eq(run("CLATTN_TUNING= CLATTN_CACHE_DIR=c/d \"$CLATTN\" tune " TUNED "--budget 0.1"), 0);
    table[slurp("c/d/tuning.txt", table, sizeof table - 1)] = 0;
    ck_assert_msg(!strncmp(table, "clattn tuning 1\n", 16) && count_of(table, "\ntile ") == 1, "%s", table);
    const int hosts = count_of(table, "\nhost "); /* a fast machine finds the host's share within the budget too */
    ck_assert_msg(hosts <= 1 && count_of(table, "\n") - count_of(table, "\n#") == 2 + hosts, "%s", table);
    ck_assert_msg(!*err && strstr(out, hosts ? "\n2 lines in c/d/tuning.txt" : "\n1 line in c/d/tuning.txt"), "%s%s",
                  out, err);
    ck_assert_ptr_nonnull(strstr(table, "f32 d16 full q40 kv40 | device "));
    for (int i = 0; i < 2; i++) { /* with what was found, which may be that nothing is better; then with other sizes */
        const bool found = i == 1 || !strstr(table, "\ntile 0 0 ");
        ck_assert_int_eq(run("CLATTN_VERBOSE=plan CLATTN_TUNING= CLATTN_CACHE_DIR=c/d \"$CLATTN\" bench --path device "
                             "--budget 0.01 " TUNED),
                         0);
        ck_assert_msg(!strstr(err, "tuned: block_q and block_kv") == !found && !strstr(err, "ignored"), "%s", err);
        if (i == 0) ck_assert_int_eq(run("sed -i 's/^tile [0-9]* [0-9]*/tile 16 32/' c/d/tuning.txt"), 0);
    }
    ck_assert_msg(strstr(err, "block_q 16, block_kv 32,") != NULL, "%s", err);

    snprintf(again, sizeof again, "%s# mine\nhost 7 | device another | 1\n%s", table,
             "tile 16 16 | attn_fwd f32 d16 full q40 kv40 | class x");
    spill("t.txt", again, strlen(again));
    expect_good("tune " TUNED "--budget 0.1 -o t.txt");
    again[slurp("t.txt", again, sizeof again - 1)] = 0;
    ck_assert_msg(count_of(again, "\ntile ") == 2 && count_of(again, "\n# mine\nhost 7 | device another | 1\n") == 1,
                  "%s", again);
}
END_TEST

/* Ctrl-C: what is finished is kept, and there is nothing yet. */
START_TEST(tune_interrupted)
{
    clattn_device_info info;
    if (device_missing("device") || !test_device_info(&info)) {
        test_skip("tune_interrupted", "no OpenCL device");
        return;
    }
    const int code = run(
        "timeout --foreground --preserve-status -s INT 2 \"$CLATTN\" tune 'f32 b1 hq8 hkv8 q1500 kv1500 d64' -o t.txt "
        "--budget 3600");
    ck_assert_msg(code == 0 && strstr(out, "nothing was finished") && !exists("t.txt"), "%d: %s%s", code, out, err);
}
END_TEST

/* The peak is that of the instructions that the host path uses. */
START_TEST(bench_peaks)
{
    static const char *const rungs[] = {"portable", "avx2"};
    double peak[2];
    for (int i = 0; i < 2; i++) {
        char line[256];
        snprintf(line, sizeof line, "CLATTN_CPU=%s \"$CLATTN\" bench %s --path host --budget 0.05 --json", rungs[i],
                 PROBLEM);
        ck_assert_int_eq(run(line), 0);
        peak[i] = number_of("peak_gflops");
    }
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        ck_assert_msg(peak[1] > 1.4 * peak[0], "%g, %g", peak[0], peak[1]);
#endif
    ck_assert(peak[0] > 0 && peak[1] > 0);
}
END_TEST

/* ---- an OpenCL call that fails, many in their turn: a sentence and a code, or the host path or another kernel did it */

static const char *const called[] = {
    "bench 'f32 b1 hq2 hkv1 q20 kv40 d8 sinks alibi' --resident --path device --budget 0.001",
    "bench 'f32 b1 hq2 hkv1 q20 kv40 d8 bias mask' --resident --pass backward --path device --budget 0.001",
    "bench 'f32 b1 hq1 hkv1 q35 kv70 d8' --plot p.svg --budget 0.001 --path device",
    "compare 'f32 b1 hq1 hkv1 q4 kv8 d8' --kernel attn_fwd_lanes",
    "forward --q q.npy --k k.npy --v v.npy -o o.npy --path device",
    "devices"};
enum { N_CALLED = sizeof called / sizeof *called, FAILING_MOST = 2500 };

START_TEST(failing_calls)
{
#ifndef CLATTN_TEST_LAYER
    test_skip("failing_calls", "no fault layer");
#else
    int failures = 0, nth = 1;
    clattn_device_info info;
    if (device_missing("device") || !test_device_info(&info)) {
        test_skip("failing_calls", "no OpenCL device");
        return;
    }
    for (; nth < FAILING_MOST; nth += 1 + nth / 8) {
        char line[512];
        snprintf(line, sizeof line, "OPENCL_LAYERS=" CLATTN_TEST_LAYER " CLATTN_FAULT_CALL=%d \"$CLATTN\" %s", nth,
                 called[_i]);
        const int code = run(line);
        ck_assert_msg(code >= 0 && code <= 2, "call %d: %d: %s", nth, code, err);
        if (strstr(err, "fault layer: 0 injected")) break;
        ck_assert_msg(!code || (!exists("o.npy") && !exists("p.svg")), "call %d: an output", nth);
        ck_assert_msg(!code || strstr(err, "clattn: ") || strstr(out, "FAILED: "), "call %d: %d without a word: %s",
                      nth, code, err);
        failures += code != 0;
        unlink("o.npy");
        unlink("p.svg");
    }
    ck_assert_msg(failures > 3, "%d failures up to call %d", failures, nth);
#endif
}
END_TEST

/* dV of rows that see every key alike is the sum of dO / n_kv: a scale of 0 makes the probs equal. */
START_TEST(backward_is_right)
{
    static char whole[4096];
    static const char *const paths[] = {"host", "device"}, *const names[] = {"host_backward", "attn_bwd"};
    float d_o[sizeof q / sizeof(float)];
    char command[256];
    clattn_device_info info;
    if (_i && !test_device_info(&info)) {
        test_skip("backward_is_right", "no OpenCL device");
        return;
    }
    for (size_t i = 0; i < sizeof q / sizeof(float); i++) d_o[i] = (float)(i % 7) - 3;
    npy("do.npy", "'<f4'", "False", "(2, 2, 3, 4)", d_o, sizeof d_o);
    snprintf(command, sizeof command,
             "backward --q q.npy --k k.npy --v v.npy --do do.npy --scale 0 --dq dq.npy --dv=dv.npy --path %s",
             paths[_i]);
    expect_good(command);
    const size_t n = slurp("dv.npy", whole, sizeof whole);
    ck_assert_uint_eq(n, 128 + 2 * 2 * 5 * 4 * sizeof(float));
    const float *dv = (const float *)(whole + 128);
    for (int head = 0; head < 4; head++)
        for (int j = 0; j < 5; j++)
            for (int d = 0; d < 4; d++) {
                const float want = (d_o[head * 12 + d] + d_o[head * 12 + 4 + d] + d_o[head * 12 + 8 + d]) / 5;
                ck_assert_msg(fabsf(dv[(head * 5 + j) * 4 + d] - want) < 1e-6F, "dv[%d][%d][%d] is %g, not %g", head, j,
                              d, (double)dv[(head * 5 + j) * 4 + d], (double)want);
            }
    ck_assert_uint_eq(slurp("dq.npy", whole, sizeof whole), 128 + sizeof q);
    const float *dq = (const float *)(whole + 128);
    for (size_t i = 0; i < sizeof q / sizeof(float); i++) ck_assert(dq[i] == 0); /* the scale is 0 */
    snprintf(command, sizeof command, "bench " PROBLEM "--pass backward --path %s --budget 0.05", paths[_i]);
    expect_good(command);
    ck_assert_ptr_nonnull(strstr(out, names[_i]));
}
END_TEST

/* With dO = 0 and V = K, dQ is scale * dLSE * O. */
START_TEST(d_lse_is_read)
{
    static char whole[4096], o[4096];
    static const char *const paths[] = {"host", "device"};
    const float zeros[sizeof q / sizeof(float)] = {0};
    float d_lse[2 * 2 * 3];
    char command[256];
    clattn_device_info info;
    if (_i && !test_device_info(&info)) {
        test_skip("d_lse_is_read", "no OpenCL device");
        return;
    }
    for (int i = 0; i < 12; i++) d_lse[i] = (float)(i % 5) - 2;
    npy("do.npy", "'<f4'", "False", "(2, 2, 3, 4)", zeros, sizeof zeros);
    npy("dlse.npy", "'<f4'", "False", "(2, 2, 3)", d_lse, sizeof d_lse);
    snprintf(command, sizeof command, "forward --q q.npy --k k.npy --v k.npy --scale 0.25 -o o.npy --path %s",
             paths[_i]);
    expect_good(command);
    ck_assert_uint_eq(slurp("o.npy", o, sizeof o), 128 + sizeof q);
    snprintf(command, sizeof command,
             "backward --q q.npy --k k.npy --v k.npy --do do.npy --dlse dlse.npy --scale 0.25 --dq dq.npy --path %s",
             paths[_i]);
    expect_good(command);
    ck_assert_uint_eq(slurp("dq.npy", whole, sizeof whole), 128 + sizeof q);
    for (int row = 0; row < 12; row++)
        for (int d = 0; d < 4; d++) {
            const float got = ((const float *)(whole + 128))[row * 4 + d];
            const float want = 0.25f * d_lse[row] * ((const float *)(o + 128))[row * 4 + d];
            ck_assert_msg(fabsf(got - want) < 1e-6F, "dq[%d][%d] is %g, not %g", row, d, (double)got, (double)want);
        }
    npy("dlse.npy", "'<f4'", "False", "(2, 3, 2)", d_lse, sizeof d_lse);
    expect_refused("backward --q q.npy --k k.npy --v k.npy --do do.npy --dlse dlse.npy --dq dq.npy", 2,
                   "it must be [2, 2, 3]");
}
END_TEST

START_TEST(compare_codes)
{
    expect_good("compare 'f32 b1 hq2 hkv1 q40 kv200 d32 causal'");
    ck_assert(strstr(out, "reference") && strstr(out, "host") && strstr(out, "ok") && !strstr(out, "WRONG"));
    expect_good("compare --q q.npy --k k.npy --v v.npy --causal");
    ck_assert(strstr(out, "ok") && !strstr(out, "WRONG"));
    /* the unnormalised sum of five values near the end of f32 leaves it, where their mean does not */
    float big[2 * 2 * 5 * 4];
    for (size_t i = 0; i < sizeof big / sizeof *big; i++) big[i] = 2e38f;
    npy("big.npy", "'<f4'", "False", "(2, 2, 5, 4)", big, sizeof big);
    ck_assert_int_eq(clattn("compare --q q.npy --k k.npy --v big.npy --scale 0 --path host"), 1);
    ck_assert_ptr_nonnull(strstr(out, "WRONG"));
    ck_assert_int_eq(clattn("compare 'f32 hq1 q9 kv9 d8' --kernel attn_fwd_mma"), 1); /* it takes f16 and bf16 */
}
END_TEST

START_TEST(selftest)
{
    expect_good(_i ? "compare" : "selftest");
    ck_assert_msg(strstr(out, " 0 failed") && strstr(out, "worst of host_tile: "), "%s", out);
    if (!device_missing("device")) ck_assert(strstr(out, "attn_fwd_lanes") && strstr(out, "attn_fwd\n"));
}
END_TEST

static TCase *add_case(Suite *s, const char *name)
{
    TCase *t = tcase_create(name);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 2400); /* a slow machine builds every kernel of the self-test in minutes */
    suite_add_tcase(s, t);
    return t;
}

Suite *test_suite(void)
{
    Suite *s = suite_create("cli");
    TCase *t = add_case(s, "usage");
    tcase_add_loop_test(t, usage_refused, 0, N_USAGES);
    tcase_add_test(t, no_command);
    tcase_add_test(t, help_and_version);
    tcase_add_test(t, stdout_that_is_full);

    t = add_case(s, "files");
    tcase_add_loop_test(t, file_refused, 0, N_FILES);
    tcase_add_loop_test(t, dictionary, 0, N_HEADERS);
    tcase_add_test(t, file_of_anything);
    tcase_add_test(t, larger_than_memory);
    tcase_add_test(t, files_that_disagree);
    tcase_add_loop_test(t, output_untouched_on_failure, 0, 4);
    tcase_add_test(t, output_replaces);

    t = add_case(s, "forward");
    tcase_add_loop_test(t, forward_is_right, 0, N_GOODS);
    tcase_add_loop_test(t, beside_the_scores, 0, N_BESIDE);
    tcase_add_test(t, map);
    tcase_add_test(t, both_flag_forms);
    tcase_add_test(t, forward_bshd);
    tcase_add_loop_test(t, forward_dtypes, 0, 4);
    tcase_add_test(t, explain);
    tcase_add_loop_test(t, forward_minilm, 0, 3);

    t = add_case(s, "others");
    tcase_add_test(t, devices_listed);
    tcase_add_test(t, without_devices);
    tcase_add_loop_test(t, backward_is_right, 0, 2);
    tcase_add_loop_test(t, d_lse_is_read, 0, 2);
    tcase_add_test(t, compare_codes);
    tcase_add_loop_test(t, selftest, 0, 2);

    t = add_case(s, "bench");
    tcase_add_loop_test(t, bench_json, 0, 6);
    tcase_add_loop_test(t, bench_resident, 0, 2);
    tcase_add_test(t, bench_in_words);
    tcase_add_test(t, bench_plot);
    tcase_add_test(t, progress_bar);
    tcase_add_test(t, tune);
    tcase_add_test(t, tune_interrupted);
    tcase_add_test(t, bench_peaks);
    tcase_add_loop_test(t, failing_calls, 0, N_CALLED);
    return s;
}
