/* clattn: exact tiled attention on any OpenCL device, and on the host.
 *
 *   device -> problem -> plan -> forward
 *
 * Every call that can fail returns a clattn_status and leaves a sentence in clattn_last_error(). A call refused for its
 * arguments or for want of memory has written nothing. Contexts and plans may be used from any threads at once. In a
 * child of fork() the host path works; if the parent used OpenCL, calls that need a device return OPENCL_ERROR. */
#ifndef CLATTN_CLATTN_H
#define CLATTN_CLATTN_H

#include <clattn/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CLATTN_VERSION_MAJOR 0
#define CLATTN_VERSION_MINOR 1
#define CLATTN_VERSION_PATCH 0

/* "0.1.0", of the library that runs. */
CLATTN_API const char *clattn_version(void);

/* ---- names: the text of an enum value, "f16"; "unknown" outside the enum. Never NULL. */
CLATTN_API const char *clattn_dtype_name(clattn_dtype dtype);
CLATTN_API const char *clattn_path_name(clattn_path path);
CLATTN_API const char *clattn_kernel_name(clattn_kernel kernel);

/* Bytes of one element; 0 for a value outside the enum. */
CLATTN_API size_t clattn_dtype_size(clattn_dtype dtype);

/* ---- problem */

/* Fills p: dense [batch, heads, seq, dim] tensors, head_dim_v = head_dim_qk = head_dim, scale automatic, every key
 * seen. Checks nothing: the calls that take a problem do. */
CLATTN_API void clattn_problem_init(clattn_problem *p, clattn_dtype dtype, int64_t batch, int64_t n_heads_q,
                                    int64_t n_heads_kv, int64_t n_q, int64_t n_kv, int64_t head_dim);

/* Strides of common layouts, in elements. bhsd: [batch, heads, seq, dim]. bshd: [batch, seq, heads, dim]. For Q, K
 * and V packed as [batch, seq, heads_in_all, dim] use bshd with heads_in_all, and begin V (say) heads_before * dim
 * later. */
CLATTN_API clattn_strides clattn_strides_bhsd(int64_t heads, int64_t seq, int64_t dim);
CLATTN_API clattn_strides clattn_strides_bshd(int64_t heads, int64_t seq, int64_t dim);

/* INVALID_ARGUMENT and a sentence when p is not legal. */
CLATTN_API clattn_status clattn_problem_check(const clattn_problem *p);

/* One line of text, as the program, the tests and the log use it:
 *   f16 b2 hq8 hkv2 q128 kv1024 d128 [dv64] [causal] [window=256,0] [offset=896|per-batch] [kvlen=1000|per-batch]
 *   [scale=0.5] [bshd] [softcap=30] [alibi[=per-batch]] [bias=1,h,q,kv:f16] [mask=b,1,1,kv] [sinks]
 *   [dropout=0.1:seed=7] [varlen=3,5,0,17]
 * Without b it is 1, without hkv hq, without dv d.
 * Dimensions of a bias or mask that are 1 are broadcast; without dimensions it has all four, without type the
 * problem's. varlen lists the sequences' lengths, or `varlen=Q1,Q2:KV1,KV2` those of queries and keys, and stands for
 * b, q and kv; `varlen total=Q,KV` beside these says how many rows and keys there are in all. from_text:
 * INVALID_ARGUMENT names the word it could not read; p is filled only on success. to_text: at most size - 1 bytes and a
 * 0, returning the full length as snprintf does. A word has at most 1023 characters, a list 256 lengths. Not to be read
 * back from the text: score functions, which to_text names, strides other than dense and bshd, and what args hold. */
CLATTN_API clattn_status clattn_problem_from_text(const char *text, clattn_problem *p);
CLATTN_API size_t clattn_problem_to_text(const clattn_problem *p, char *text, size_t size);

/* What a text says of a call: dropout's seed (0 when it says nothing), and the sequences as cu_seqlens [batch + 1].
 * NULL: not wanted. */
CLATTN_API clattn_status clattn_problem_text_args(const char *text, uint64_t *seed, int64_t *cu_seqlens_q,
                                                  int64_t *cu_seqlens_kv);

/* ---- devices */

/* Devices of all OpenCL platforms; 0 without OpenCL. */
CLATTN_API clattn_status clattn_device_count(int *count);

CLATTN_API void clattn_device_info_init(clattn_device_info *info);

/* info of device `index`, counted from 0; NO_DEVICE past the last. */
CLATTN_API clattn_status clattn_device_get_info(int index, clattn_device_info *info);

/* ---- context */

CLATTN_API void clattn_context_options_init(clattn_context_options *options);

/* Opens a device, or none. options NULL: the defaults. NO_DEVICE when the one that was named is not there; the default
 * device being absent is no error, the context is then host-only. The caller owns *context, one reference. */
CLATTN_API clattn_status clattn_context_create(const clattn_context_options *options, clattn_context **context);

/* One reference more, one less; the last one frees. Plans hold a reference of their own. NULL is allowed. */
CLATTN_API clattn_status clattn_context_retain(clattn_context *context);
CLATTN_API clattn_status clattn_context_release(clattn_context *context);

/* ---- plan */

CLATTN_API void clattn_plan_options_init(clattn_plan_options *options);

/* Decides how p will run on context (NULL: the process's default context) and builds what that needs; success means
 * that it is built and fits the device. options NULL: the defaults. UNSUPPORTED when the path or kernel that was
 * asked for cannot do it. The plan is immutable; the caller owns *plan, one reference. */
CLATTN_API clattn_status clattn_plan_create(clattn_context *context, const clattn_problem *p,
                                            const clattn_plan_options *options, clattn_plan **plan);
CLATTN_API clattn_status clattn_plan_retain(clattn_plan *plan);
CLATTN_API clattn_status clattn_plan_release(clattn_plan *plan);

/* What was chosen, what was refused, and why, a sentence a line. Belongs to the plan; "" for NULL. */
CLATTN_API const char *clattn_plan_explain(const clattn_plan *plan);

CLATTN_API void clattn_plan_info_init(clattn_plan_info *info);
CLATTN_API clattn_status clattn_plan_get_info(const clattn_plan *plan, clattn_plan_info *info);

/* Bytes that args.workspace must hold for clattn_enqueue_forward or clattn_enqueue_backward, whichever the plan is
 * for; 0 for NULL. clattn_forward and clattn_backward bring their own. */
CLATTN_API size_t clattn_plan_workspace_size(const clattn_plan *plan);

/* ---- built programs, for apps that keep them themselves: on disk clattn does
 * (clattn_context_options.program_cache) */

/* The binaries of a plan's device programs, one record after the other, each with what it was built of and for, and a
 * checksum. data NULL: *needed, in bytes, alone; else INVALID_ARGUMENT when size is less. 0 bytes for a plan without a
 * device kernel. Some drivers compile more for it. */
CLATTN_API clattn_status clattn_plan_get_binaries(const clattn_plan *plan, void *data, size_t size, size_t *needed);

/* For the plans that context (NULL: the default one) makes from now on; copied. INVALID_ARGUMENT when data are not
 * whole records, unchanged; then none is taken. Records of another device, driver or version of clattn are legal and
 * not used, and a binary that the driver refuses is built from source. Binaries are code: give none whose origin is
 * not to be trusted. */
CLATTN_API clattn_status clattn_context_add_binaries(clattn_context *context, const void *data, size_t size);

/* ---- tuning tables: the block sizes that were fastest on a device, and up to how many rows AUTO takes the host
 * (docs/tuning.md) */

/* The file that contexts read: CLATTN_TUNING, else tuning.txt in CLATTN_CACHE_DIR, else in XDG_CACHE_HOME/clattn,
 * else in HOME/.cache/clattn. At most size - 1 bytes and a 0, returning the full length as snprintf does; 0: none,
 * and none where CLATTN_TUNING is 0. A program with more rights than its user reads neither table nor cache. */
CLATTN_API size_t clattn_tuning_file(char *path, size_t size);

/* The table's line that lets plans for problems like this one on this device take this plan's block sizes; of a plan
 * on the host path, the line that lets AUTO take the host for up to as many queries and keys there. 512 bytes are
 * enough; INVALID_ARGUMENT when size is too small, UNSUPPORTED for a kernel that takes no sizes from tables,
 * NO_DEVICE on a context without one. */
CLATTN_API clattn_status clattn_plan_get_tuning(const clattn_plan *plan, char *line, size_t size);

/* ---- forward */

CLATTN_API void clattn_forward_args_init(clattn_forward_args *args);

static inline clattn_buffer clattn_host_buffer(const void *pointer)
{
    clattn_buffer b;
    b.host = (void *)(uintptr_t)pointer;
    b.mem = NULL;
    b.offset = 0;
    return b;
}

/* Runs the plan on host pointers and returns when O and LSE are written. Copies that a device cannot hold at once go
 * there in shares (clattn_context_options.copy_bytes_most). The keys of one head are cut by the decode kernels alone, not
 * those of packed sequences; elsewhere they must fit. */
CLATTN_API clattn_status clattn_forward(const clattn_plan *plan, const clattn_forward_args *args);

/* One call: a plan for p on context (NULL: the default one), and clattn_forward. The context keeps the plans of the 8
 * problems that were called last, so sizes that change with each call cost a plan each. lse may be NULL. Only Q, K and
 * V are given: a p that needs other args (per-batch lengths or offsets, bias, boolean mask, ALiBi, sinks, dropout,
 * varlen, a score function) is refused. The context frees the plans. */
CLATTN_API clattn_status clattn_attention(clattn_context *context, const clattn_problem *p, const void *q,
                                          const void *k, const void *v, void *o, float *lse);

/* The definition of right: textbook attention in double on one thread, for tests. args: host pointers, as for
 * clattn_forward, but o and lse are not used; o and lse are double, dense [batch, heads, seq, dim] ([heads, total_q,
 * dim] for varlen); lse may be NULL. It keeps n_kv doubles. */
CLATTN_API clattn_status clattn_reference_forward(const clattn_problem *p, const clattn_forward_args *args, double *o,
                                                  double *lse);

/* ---- backward */

CLATTN_API void clattn_backward_args_init(clattn_backward_args *args);

/* Runs a plan made with options.pass = CLATTN_PASS_BACKWARD on host pointers and returns when the gradients are
 * written: the same bits for any number of threads and in any batch. On the host it keeps 4 head_dim_qk bytes (f64: 8)
 * for each row of a GQA group and each thread, 8 bytes for each row of all, and 64 MiB or one batch entry's share
 * beside. */
CLATTN_API clattn_status clattn_backward(const clattn_plan *plan, const clattn_backward_args *args);

/* The gradients by the textbook's formulas in double, for tests. args: host pointers; of the forward's o and lse and
 * of the outputs nothing is used, O and LSE are computed again. Gradients are double and dense: dq [batch,
 * n_heads_q, n_q, head_dim_qk], dk, dv likewise ([heads, total, dim] for varlen), dbias [batch, n_heads_q, n_q,
 * n_kv] with 1 for each dimension that the bias broadcasts, dalibi_slopes as the slopes, dsinks [n_heads_q]; each
 * NULL when not wanted. */
typedef struct clattn_reference_gradients {
    double *dq, *dk, *dv, *dbias, *dalibi_slopes, *dsinks;
} clattn_reference_gradients;
CLATTN_API clattn_status clattn_reference_backward(const clattn_problem *p, const clattn_backward_args *args,
                                                   const clattn_reference_gradients *gradients);

/* What stands at a step of the score's way. */
typedef enum clattn_score_step {
    CLATTN_SCORE_SCALED = 0, /* softmax scale * q.k */
    CLATTN_SCORE_CAPPED = 1, /* after softcap */
    CLATTN_SCORE_MASKED = 2, /* after ALiBi, bias, score function and mask: -inf where hidden */
    CLATTN_SCORE_PROBS = 3   /* after softmax, before dropout */
} clattn_score_step;

/* For looking at what a model attends to: scores or probs of one head, dense [n_q, n_kv] (of varlen: the sequence's
 * own numbers of rows and keys), computed on the host, rounded to f32; probs come from the rounded scores. args:
 * host pointers; o and lse are not used. Hidden keys have -inf, or 0 as probs. */
CLATTN_API clattn_status clattn_scores(const clattn_problem *p, const clattn_forward_args *args, clattn_score_step step,
                                       int64_t batch, int64_t head, float *scores);

/* The same by the reference. */
CLATTN_API clattn_status clattn_reference_scores(const clattn_problem *p, const clattn_forward_args *args,
                                                 clattn_score_step step, int64_t batch, int64_t head, double *scores);

/* Dropout's keep-mask for a problem: keep[b, h, i, j] is 1 where the prob stays, dense [batch, n_heads_q, n_q,
 * n_kv]. */
CLATTN_API clattn_status clattn_dropout_mask(const clattn_problem *p, uint64_t seed, uint64_t offset, uint8_t *keep);

#ifdef __cplusplus
}
#endif
#endif
