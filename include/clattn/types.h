/* The types of clattn's interface: storage types, strides, problems, options, arguments.
 *
 * Structs that may grow carry struct_size first. Fill them with their _init function, then set fields. A struct_size
 * that this library does not know is refused. */
#ifndef CLATTN_TYPES_H
#define CLATTN_TYPES_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include <clattn/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Storage types. XX(name, value, bytes, text) */
#define CLATTN_DTYPE_MAP(XX)                                                                                           \
    XX(F32, 1, 4, "f32")   /* IEEE binary32; scores, row state and sums in f32 */                                      \
    XX(F16, 2, 2, "f16")   /* IEEE binary16; scores, row state and sums in f32 */                                      \
    XX(BF16, 3, 2, "bf16") /* the upper half of a binary32; scores, row state and sums in f32 */                       \
    XX(F64, 4, 8, "f64")   /* IEEE binary64; scores, row state and sums in f64 */

typedef enum clattn_dtype {
#define CLATTN_DTYPE_ENUM(name, value, bytes, text) CLATTN_DTYPE_##name = value,
    CLATTN_DTYPE_MAP(CLATTN_DTYPE_ENUM)
#undef CLATTN_DTYPE_ENUM
} clattn_dtype;

/* Where a plan runs. XX(name, value, text) */
#define CLATTN_PATH_MAP(XX)                                                                                            \
    XX(AUTO, 0, "auto")     /* host when n_q <= 128 and n_kv <= 128 (a tuning table may say otherwise) or there is */  \
                            /* no device that can, else device; a score function in OpenCL C alone: device */          \
    XX(HOST, 1, "host")     /* the host's own processor, no OpenCL */                                                  \
    XX(DEVICE, 2, "device") /* the context's OpenCL device */

typedef enum clattn_path {
#define CLATTN_PATH_ENUM(name, value, text) CLATTN_PATH_##name = value,
    CLATTN_PATH_MAP(CLATTN_PATH_ENUM)
#undef CLATTN_PATH_ENUM
} clattn_path;

/* Which implementation of the tile loop. XX(name, value, text) */
#define CLATTN_KERNEL_MAP(XX)                                                                                          \
    XX(AUTO, 0, "auto")                     /* what suits the problem and the device */                                \
    XX(HOST_TILE, 1, "host_tile")           /* host path: vectors of query rows, one file per instruction set */       \
    XX(ATTN_FWD, 2, "attn_fwd")             /* device path: K and V blocks staged in local memory */                   \
    XX(ATTN_FWD_LANES, 3, "attn_fwd_lanes") /* device path for CPU devices: one work-item a tile, no barrier */        \
    XX(HOST_DECODE, 4, "host_decode")       /* host path, few query rows: vectors of a head's elements */              \
    XX(ATTN_DECODE_LANES, 5,                                                                                           \
       "attn_decode_lanes")                 /* device path for CPU devices: few query rows, the keys in chunks */      \
    XX(HOST_BACKWARD, 8, "host_backward")   /* host path, backward: tiles of keys, one file per instruction set */     \
    XX(ATTN_BWD_LANES, 9, "attn_bwd_lanes") /* device path for CPU devices, backward: one work-item some kv tiles */   \
    XX(ATTN_BWD, 10, "attn_bwd")            /* device path, backward: tiles in local memory, scores computed twice */  \
    XX(ATTN_FWD_MMA, 11, "attn_fwd_mma")    /* device path, f16 and bf16: products in the device's matrix engine */    \
    XX(ATTN_DECODE, 12, "attn_decode")      /* device path for GPUs: few query rows, the keys in chunks */

typedef enum clattn_kernel {
#define CLATTN_KERNEL_ENUM(name, value, text) CLATTN_KERNEL_##name = value,
    CLATTN_KERNEL_MAP(CLATTN_KERNEL_ENUM)
#undef CLATTN_KERNEL_ENUM
} clattn_kernel;

/* Strides of a tensor [batch, heads, seq, dim], in ELEMENTS, none negative; dim is contiguous. In an input a stride may
 * be 0 (one copy serves all); an output overlaps neither itself nor another argument. All three 0: dense, in the order
 * [batch, heads, seq, dim]. */
typedef struct clattn_strides {
    int64_t batch, head, seq;
} clattn_strides;

/* Strides of a tensor [batch, heads, n_q, n_kv] that is read beside the scores, in ELEMENTS, none negative. 0 broadcasts:
 * one number serves the whole dimension. */
typedef struct clattn_score_strides {
    int64_t batch, head, q, kv;
} clattn_score_strides;

#define CLATTN_SCALE_AUTO (-DBL_MAX) /* clattn_problem.scale: 1/sqrt(head_dim_qk) */
#define CLATTN_KV_LENGTH_ALL (-1)    /* clattn_problem.kv_length: n_kv */
#define CLATTN_WINDOW_UNBOUNDED (-1) /* a side of the window without a bound */

/* Which keys a query sees. Query row i of a batch entry stands at position p = query_offset + i, key j at j. The row
 * sees key j iff 0 <= j < kv_length and p - window_left <= j <= p + window_right, and the boolean mask, if there is one,
 * is not 0 there. Causal is window_right = 0. */
typedef struct clattn_mask {
    int64_t window_left, window_right; /* keys, at least 0, or CLATTN_WINDOW_UNBOUNDED (default) */
    int boolean;                       /* 1: args.mask, one byte an element, 0 hides; default 0: none */
    clattn_score_strides strides;      /* of args.mask; default all 0: one byte for all */
} clattn_mask;

/* An additive bias on the scaled scores, after softcap and ALiBi. */
typedef struct clattn_bias {
    clattn_dtype dtype;           /* of args.bias; default 0: no bias */
    clattn_score_strides strides; /* default all 0: one number for all */
} clattn_bias;

/* ALiBi adds -slope * |p - j| to the scaled score. */
typedef enum clattn_alibi {
    CLATTN_ALIBI_NONE = 0,
    CLATTN_ALIBI_PER_HEAD = 1,          /* args.alibi_slopes is f32 [n_heads_q] */
    CLATTN_ALIBI_PER_BATCH_AND_HEAD = 2 /* args.alibi_slopes is f32 [batch, n_heads_q] */
} clattn_alibi;

/* A score function of the app's, after bias and before the mask, as C for the host path and as OpenCL C for devices; both
 * get the score in natural units and give the new one.
 *   C         double f(double score, int64_t b, int64_t h, int64_t i, int64_t j, const void *data)
 *   OpenCL C  the body of
 *             real score_function(real score, int b, int h, int i, int j, __global const void *data) { BODY }
 *             where real is float, or double in an f64 problem; or one expression, without `return` and `;`. */
typedef double(clattn_score_fn)(double score, int64_t b, int64_t h, int64_t i, int64_t j, const void *data);
typedef struct clattn_score_function {
    clattn_score_fn *host;            /* default NULL; needed on the host path and by the reference */
    const char *source;               /* default NULL; needed on the device path, while the plan is made */
    size_t data_bytes;                /* size of args.score_data; 0: there is none */
    clattn_score_fn *host_derivative; /* d(new score)/d(score) at score, for backward: default NULL, then unsupported */
    const char *source_derivative;    /* the same in OpenCL C: as source, of score_derivative */
} clattn_score_function;

/* O = softmax(mask(f(scale * Q K^T))) V, in this order: softmax scale, softcap, ALiBi, bias, score function, mask (hidden
 * keys are left out), softmax, dropout.
 *   Q [batch, n_heads_q,  n_q,  head_dim_qk]      K [batch, n_heads_kv, n_kv, head_dim_qk]
 *   O [batch, n_heads_q,  n_q,  head_dim_v]       V [batch, n_heads_kv, n_kv, head_dim_v]
 *   LSE [batch, n_heads_q, n_q], f32 whatever the storage: m + ln(l), the natural logarithm of the softmax's sum
 * Query head h reads K and V of head h / (n_heads_q / n_heads_kv). A row that sees no key gives O = 0, LSE = -inf
 * (with a sink: LSE = sink).
 *
 * varlen: Q and O are [n_heads_q, total_q, dim] and K and V [n_heads_kv, total_kv, dim] through the strides head and seq,
 * LSE [n_heads_q, total_q]; the batch strides are not used. Sequence b has the rows args.cu_seqlens_q[b] up to
 * args.cu_seqlens_q[b + 1] and likewise its keys; n_q and n_kv are the most rows and keys that any sequence has, and rows
 * and keys count from 0 in each sequence for windows, offsets, bias, mask and dropout. Default strides (all 0): dense
 * [total, heads, dim]. */
typedef struct clattn_problem {
    size_t struct_size;
    clattn_dtype dtype;                   /* of Q, K, V and O; _init sets it */
    int64_t batch, n_heads_q, n_heads_kv; /* at least 1; n_heads_q a multiple of n_heads_kv */
    int64_t n_q, n_kv;                    /* 0 to 2^30 - 1; more is UNSUPPORTED */
    int64_t head_dim_qk, head_dim_v;      /* 1 to 2^24 - 1 on the host path; a device may take fewer */
    clattn_strides q, k, v, o;            /* default all 0: dense */
    clattn_strides lse;                   /* of LSE [batch, heads, seq]; default all 0: dense */
    double scale;                         /* up to 2e38 in size, in f64 1e308; default CLATTN_SCALE_AUTO */
    clattn_mask mask;                     /* default: no bound */
    int64_t query_offset;                 /* position of query row 0, any value; default 0 (top-left causal) */
    int64_t kv_length;                    /* keys in use, 0..n_kv; default, and with varlen, _ALL */
    int query_offset_per_batch;           /* 1: from args.query_offsets [batch], the field above unused; default 0 */
    int kv_length_per_batch;              /* 1: from args.kv_lengths [batch], the field above unused; default 0 */
    double softcap;                       /* c of s -> c tanh(s / c); default 0: none; else 1.2e-38 to
                                             2e38, or in f64 finite and above 0 */
    clattn_alibi alibi;                   /* default CLATTN_ALIBI_NONE */
    clattn_bias bias;                     /* default: none */
    clattn_score_function score_function; /* default: none */
    int sinks;                            /* 1: args.sinks, f32 [n_heads_q], one more logit in each row's denominator,
                                             without a value; default 0 */
    double dropout;                       /* probability, in [0, 1), that a prob is dropped; what stays is divided by
                                             1 - dropout; l and LSE do not change. Default 0 */
    int varlen;                           /* 1: sequences packed one after the other, below; default 0 */
    int64_t total_q, total_kv;            /* varlen: rows of all sequences together, at least 0 */
} clattn_problem;

/* A tensor's place: host memory, or a cl_mem and an offset. Neither: absent. Make it with clattn_host_buffer or, from
 * <clattn/opencl.h>, clattn_cl_buffer. It owns nothing. */
typedef struct clattn_buffer {
    void *host;    /* host memory, or NULL */
    void *mem;     /* a cl_mem, or NULL */
    size_t offset; /* bytes from the start of mem, or from host, to element [0, 0, 0, 0]; a multiple of its size */
} clattn_buffer;

/* What may change from call to call of one plan. */
typedef struct clattn_forward_args {
    size_t struct_size;
    clattn_buffer q, k, v;       /* inputs; k and v may be absent when n_kv is 0, q and o when n_q is 0 */
    clattn_buffer o;             /* output */
    clattn_buffer lse;           /* output; absent: not written */
    clattn_buffer kv_lengths;    /* int64_t [batch], 0..n_kv; read iff problem.kv_length_per_batch. In a cl_mem the
                                       values cannot be checked: they are cut to 0..n_kv, so nothing else is read */
    clattn_buffer query_offsets; /* int64_t [batch]; read iff problem.query_offset_per_batch */
    clattn_buffer bias;          /* problem.bias.dtype [batch, n_heads_q, n_q, n_kv] */
    clattn_buffer mask;          /* one byte an element [batch, n_heads_q, n_q, n_kv], 0 hides */
    clattn_buffer alibi_slopes;  /* f32 [n_heads_q] or [batch, n_heads_q] */
    clattn_buffer sinks;         /* f32 [n_heads_q] */
    clattn_buffer score_data;    /* what the score function gets */
    clattn_buffer cu_seqlens_q;  /* int64_t [batch + 1], from 0 to total_q, never decreasing. In a cl_mem the values
                                    cannot be checked: sequences are cut to n_q rows and to total_q */
    clattn_buffer cu_seqlens_kv; /* likewise */
    uint64_t dropout_seed,
        dropout_offset;      /* Philox 4x32-10 keyed by both: the same two give the same mask on every path */
    clattn_buffer workspace; /* clattn_plan_workspace_size bytes, at offset 0; absent when that is 0 */
} clattn_forward_args;

/* The gradients of a loss L with respect to the inputs, from those with respect to O (and LSE), for the same problem and
 * the same arguments as the forward call, which must have stored LSE. Each output has the shape and the strides of the
 * tensor that it belongs to, is absent when it is not wanted, and is written whole, once:
 *   dQ [batch, n_heads_q, n_q, head_dim_qk]    dK [batch, n_heads_kv, n_kv, head_dim_qk]    dV like V, all problem.dtype
 *   dbias problem.bias.dtype, summed over the dimensions that the bias broadcasts (stride 0)
 *   dalibi_slopes f32, summed over the batch if the slopes are per head    dsinks f32 [n_heads_q], summed over the batch
 * Rows that see no key give gradients of exactly 0. Keys beyond kv_length, and those that nobody sees, have dK = dV = 0. */
typedef struct clattn_backward_args {
    size_t struct_size;
    clattn_forward_args forward; /* what clattn_forward was given; o and lse are read here. Its workspace is not used */
    clattn_buffer d_o;           /* like O: dL/dO */
    clattn_buffer d_lse;         /* like LSE: dL/dLSE; absent: 0. Not read where LSE is -inf */
    clattn_buffer dq, dk, dv;    /* outputs; absent: not wanted */
    clattn_buffer dbias, dalibi_slopes, dsinks; /* likewise; refused when the problem has no such input */
    clattn_buffer workspace;                    /* as the forward call's */
} clattn_backward_args;

/* One line of the log: kind is "plan", "build" or "run"; text has no newline and is the caller's to copy. It may be
 * called from any thread that uses the context, with no lock of clattn's held. */
typedef void(clattn_log_fn)(const char *kind, const char *text, void *user);

/* Runs task(argument, i) for every i in [0, n), on any threads in any order, and returns when all are done. */
typedef void(clattn_parallel_for_fn)(void *user, size_t n, void (*task)(void *argument, size_t i), void *argument);

/* Which device a context opens. */
typedef enum clattn_device_select {
    CLATTN_DEVICE_DEFAULT = 0, /* the first GPU, else the first device; none: host-only. Opened when first needed */
    CLATTN_DEVICE_INDEX = 1,   /* device_index, as `clattn devices` counts them */
    CLATTN_DEVICE_NAME = 2,    /* the first whose name, platform name or version contains device_name, in any case */
    CLATTN_DEVICE_NONE = 3     /* host-only */
} clattn_device_select;

/* Where programs that were built for a device are kept, for the next process. */
typedef enum clattn_program_cache {
    CLATTN_PROGRAM_CACHE_DEFAULT =
        0,                       /* on disk, in CLATTN_CACHE_DIR, else XDG_CACHE_HOME/clattn, else HOME/.cache/clattn;
                                         at most CLATTN_CACHE_SIZE MiB (256). Nowhere where CLATTN_CACHE is 0 */
    CLATTN_PROGRAM_CACHE_OFF = 1 /* nowhere */
} clattn_program_cache;

typedef struct clattn_context_options {
    size_t struct_size;
    clattn_device_select device; /* default CLATTN_DEVICE_DEFAULT; clattn_context_create_from_cl ignores it */
    int device_index;            /* for CLATTN_DEVICE_INDEX */
    const char *device_name;     /* for CLATTN_DEVICE_NAME; copied */
    int n_devices;               /* of `devices`, in place of the lines above; default 0: the one that these select.
                                    clattn_context_create_from_cl ignores both */
    const int *devices; /* indices, copied. The first is the context's own device, which backward and clattn_enqueue_*
                                    take. clattn_forward on the device path is cut into shares of batch entries, heads,
                                    rows or, of the decode kernels, keys, which all of them work on at once, each by
                                    a kernel of its own: what it takes is copied, as copy_transfers = 1 has it. A
                                    call that has too few of these takes fewer devices, and one that cannot run the
                                    problem is left out; the explanation says so */
    int n_threads; /* of the host path, and of copies to and from devices; default 0: one per available processor. The
                      copies of devices beyond the first have their share of as many again */
    clattn_parallel_for_fn *parallel_for; /* for those, but for devices beyond the first: the app's own threads; default
                                             NULL: clattn's */
    void *parallel_for_user;
    clattn_log_fn *log; /* default NULL: none. CLATTN_VERBOSE=plan,build,run or all prints on stderr */
    void *log_user;
    int copy_transfers; /* 1: clattn_forward copies even where the device shares host memory; default 0 */
    clattn_program_cache program_cache; /* default CLATTN_PROGRAM_CACHE_DEFAULT */
    int64_t copy_bytes_most; /* bytes, at least 0, of device copies and work space that one call with host pointers may
                                have at a time, not counting 16 MiB of page-locked host memory that copies pass through;
                                forward runs in shares then. Default 0: 3/4 of the device's memory */
    const char *tuning;      /* a tuning table, as `clattn tune` writes it; copied; "": none. Default NULL: that of
                           clattn_tuning_file, if there is one. Lines that are no entries are left out, and in the log */
} clattn_context_options;

/* What a plan is for. */
typedef enum clattn_pass {
    CLATTN_PASS_FORWARD = 0, /* clattn_forward and clattn_enqueue_forward */
    CLATTN_PASS_BACKWARD = 1 /* clattn_backward and clattn_enqueue_backward */
} clattn_pass;

typedef struct clattn_plan_options {
    size_t struct_size;
    clattn_path path;          /* default AUTO */
    clattn_kernel kernel;      /* default AUTO; a kernel of the other path is refused */
    int64_t block_q, block_kv; /* rows of a query tile, keys of a kv block; default 0: automatic. Cut to the sequence,
                                  then up to the next size that the kernel has, or down to the largest that fits:
                                  clattn_plan_get_info tells which */
    int n_threads;             /* host path: most shares of the work at once, whatever threads the context has for
                                  them; default 0: the context's threads */
    clattn_pass pass;          /* default FORWARD */
} clattn_plan_options;

/* What a plan decided. Strings belong to the plan. */
typedef struct clattn_plan_info {
    size_t struct_size;
    clattn_path path;         /* HOST or DEVICE: where clattn_forward or clattn_backward runs */
    clattn_kernel kernel;     /* what it runs; a device's gradients take further kernels, which the explanation names */
    clattn_kernel cl_kernel;  /* what clattn_enqueue_* runs; AUTO when the plan cannot be enqueued */
    clattn_dtype products;    /* what Q K', P V, dO V' and P' dO are multiplied in: F32, F64, or BF16 or F16, to which
                                 P is rounded then, but neither scores nor sums; F32 too where
                                 Q and K alone are multiplied in pairs of bf16 */
    const char *instructions; /* host path: "amx_bf16", "avx512_bf16", "avx512", "avx2", "portable"; "" on devices */
    const char *device;       /* device path: the device's name; "" on the host path */
    int64_t block_q, block_kv;
    int64_t work_group_size; /* work-items; 0 on the host path */
    int64_t local_bytes;     /* local memory of a work-group; 0 on the host path */
    int n_threads;           /* at most, on the host path; 0 on the device path */
    int zero_copy;           /* 1: calls with host pointers let the kernels work in the caller's own memory */
    int64_t n_shares; /* of a call with host pointers on the device path, on each device one after the other; 1: all at
                         once, as where zero_copy is 1, unless overlaps or gaps force copies; 0 on the host path */
    int n_devices;    /* that divide them among themselves, at least 1; 0 on the host path */
    int tuned;        /* 1: the block sizes are a tuning table's */
} clattn_plan_info;

typedef struct clattn_device_info {
    size_t struct_size;
    int index; /* for CLATTN_DEVICE_INDEX */
    char name[128], platform[128], driver[128], version[128];
    char type[16]; /* "gpu", "cpu", "accelerator" or "other" */
    int compute_units;
    int64_t max_work_group_size; /* work-items */
    int64_t local_bytes, global_bytes, max_alloc_bytes;
    int has_fp64;           /* 1: f64 problems can run */
    int shares_host_memory; /* 1: clattn_forward copies nothing, but where overlaps or gaps force it */
    int matrix_engine;    /* 1: AUTO takes attn_fwd_mma, f16 and bf16, head dims up to 128, once its test has passed */
    int usable;           /* 1: clattn can run on it */
    clattn_kernel kernel; /* what AUTO takes there for many rows, without the matrix engine */
    char why[256];        /* why it is not usable, or why that kernel */
} clattn_device_info;

typedef struct clattn_context clattn_context;
typedef struct clattn_plan clattn_plan;

#ifdef __cplusplus
}
#endif
#endif
