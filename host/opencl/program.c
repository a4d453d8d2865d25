/* A choice -> a built kernel: the -D list, the source with its includes put in, the build, the device's built
 * kernels. */
#include <stdlib.h>
#include <string.h>

#include "device_cl.h"
#include "embedded.h"

static const embedded_file *find_file(const char *name, size_t length)
{
    for (const embedded_file *f = clattn__embedded; f->name; f++)
        if (strlen(f->name) == length && !strncmp(f->name, name, length)) return f;
    return NULL;
}

/* ---- source: `#include "x"` lines become the file, once each; #line keeps the compiler's messages readable */

typedef struct source {
    text out;
    const char *score_function, *score_derivative; /* the app's, or NULL */
    const embedded_file *seen[32];
    int n_seen;
} source;

/* The app's expression or function body, under its own line numbers. */
static void add_score_function(source *s, const char *name, const char *body)
{
    const bool is_expression = !strchr(body, ';');
    text_add(&s->out,
             "FN real %s(real score, int b, int h, int i, int j, __global const void *data)\n{\n"
             "#line 1 \"%s\"\n%s%s%s\n}\n",
             name, name, is_expression ? "return (" : "", body, is_expression ? "\n);" : "");
}

static bool add_file(source *s, const char *name, size_t length)
{
    static const char score_file[] = "score_function.clh";
    const embedded_file *f = find_file(name, length);
    if (!f || s->n_seen == (int)(sizeof s->seen / sizeof s->seen[0])) return false;
    for (int i = 0; i < s->n_seen; i++)
        if (s->seen[i] == f) return true;
    s->seen[s->n_seen++] = f;
    if (s->score_function && !strcmp(f->name, score_file)) {
        static const char needs[] = "storage.clh";
        if (!add_file(s, needs, sizeof needs - 1)) return false;
        add_score_function(s, "score_function", s->score_function);
        if (s->score_derivative) add_score_function(s, "score_derivative", s->score_derivative);
        return true;
    }
    text_add(&s->out, "#line 1 \"%s\"\n", f->name);
    int line_number = 1;
    for (const char *line = f->text, *end; *line; line = end, line_number++) {
        static const char include[] = "#include \"";
        end = strchr(line, '\n');
        end = end ? end + 1 : line + strlen(line);
        if (strncmp(line, include, sizeof include - 1)) {
            text_add(&s->out, "%.*s", (int)(end - line), line);
            continue;
        }
        const char *inner = line + sizeof include - 1, *quote = strchr(inner, '"');
        if (!quote || !add_file(s, inner, (size_t)(quote - inner))) return false;
        text_add(&s->out, "#line %d \"%s\"\n", line_number + 1, f->name);
    }
    return true;
}

/* The app's, for kernels that have a use for it. */
static const char *score_source_of(const device_stage *stage, const char *given)
{
    return stage->axes & AXIS_BIT(SCORE_FN) ? given : NULL;
}

/* The whole source of a kernel file, to be freed; NULL when out of memory or a file is missing. */
static char *source_make(const device_stage *stage, const device_choice *choice)
{
    char name[64], *data = NULL;
    snprintf(name, sizeof name, "%s.cl", stage->name);
    for (size_t size = 0;;) {
        source s = {.out = {data, size, 0},
                    .score_function = score_source_of(stage, choice->score_source),
                    .score_derivative = score_source_of(stage, choice->score_derivative)};
        if (!add_file(&s, name, strlen(name))) break;
        if (s.out.length < size) return data;
        size = s.out.length + 1;
        free(data);
        data = malloc(size);
        if (!data) break;
    }
    free(data);
    return NULL;
}

/* ---- build */

enum { OPTIONS_SIZE = 640 };

static void options_make(const struct device *d, const device_choice *choice, const device_stage *stage, char *to,
                         size_t size)
{
    text t = {to, size, 0};
    text_add(&t, "-cl-std=CL1.2 -w");                                 /* PoCL counts warnings on stderr */
    if (d->profile.sub_group && !strncmp(stage->name, "attn_fwd", 8)) /* else they spill */
        text_add(&t, " -DSUB_GROUP=%d -cl-intel-256-GRF-per-thread", d->profile.sub_group);
    for (int i = 0; i < AXIS_COUNT; i++)
        text_add(&t, " -D%s=%d", clattn__axis_names[i], clattn__plan_axis(choice, stage, (axis)i));
}

/* "FILE:LINE: " for a driver that counts the whole source's lines, past all #line; else "". */
static void place_add(cl_program program, const char *error, text *to)
{
    size_t size = 0;
    long wanted = 0, line = 0;
    char file[64] = "";
    if (!error || sscanf(error, "<kernel>:%ld:", &wanted) != 1) return;
    clGetProgramInfo(program, CL_PROGRAM_SOURCE, 0, NULL, &size);
    char *all = calloc(1, size + 1);
    if (all) clGetProgramInfo(program, CL_PROGRAM_SOURCE, size, all, NULL);
    for (char *at = all; at && *at && --wanted > 0; line++) {
        if (sscanf(at, "#line %ld \"%63[^\"]\"", &line, file) == 2) line--;
        at = strchr(at, '\n');
        if (at) at++;
    }
    if (file[0]) text_add(to, "%s:%ld: ", file, line);
    free(all);
}

static clattn_status build_failed(const struct device *d, cl_program program, const char *name, const char *options,
                                  cl_int code)
{
    size_t size = 0;
    clGetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size);
    char *log = calloc(1, size + 1);
    if (log) clGetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, size, log, NULL);
    const char *error = log ? strstr(log, "error") : NULL;
    while (error && error > log && error[-1] != '\n') error--; /* its line names the place */
    for (char *c = log; c && *c; c++)
        if (*c == '\n') *c = ' ';
    if (!error) error = log ? log : "";
    char place[96] = "";
    text at = {place, sizeof place, 0};
    place_add(program, error, &at);
    const clattn_status status = clattn__fail(CLATTN_STATUS_BUILD_FAILED, code, "%s did not build on %s: %s%.600s (%s)",
                                              name, d->profile.name, place, error, options);
    free(log);
    return status;
}

/* Of a record's binary, or of all the source when record is NULL. */
static clattn_status program_create(const struct device *d, const char *all, const program_record *record,
                                    cl_program *program)
{
    cl_int code, state = CL_SUCCESS;
    *program = record ? clCreateProgramWithBinary(d->cl, 1, &d->id, &record->binary_bytes,
                                                  (const unsigned char *[]){record->binary}, &state, &code)
                      : clCreateProgramWithSource(d->cl, 1, (const char *[]){all}, NULL, &code);
    RETURN_IF_CL(record ? "clCreateProgramWithBinary" : "clCreateProgramWithSource", code);
    return CLATTN_STATUS_SUCCESS;
}

static clattn_status program_build(const struct device *d, cl_program program, const device_stage *stage,
                                   const char *options)
{
    const cl_int code = clBuildProgram(program, 1, &d->id, options, NULL, NULL);
    if (code == CL_SUCCESS) return CLATTN_STATUS_SUCCESS;
    return code == CL_OUT_OF_HOST_MEMORY || code == CL_OUT_OF_RESOURCES
               ? clattn__cl_fail("clBuildProgram", code)
               : build_failed(d, program, stage->name, options, code);
}

/* What the compiler made must fit: some drivers learn only then how many work-items its registers allow. */
static clattn_status check_fits(const struct device *d, cl_kernel kernel, const device_stage *stage)
{
    size_t most = 0;
    cl_ulong local = 0;
    RETURN_IF_CL("clGetKernelWorkGroupInfo",
                 clGetKernelWorkGroupInfo(kernel, d->id, CL_KERNEL_WORK_GROUP_SIZE, sizeof most, &most, NULL));
    RETURN_IF_CL("clGetKernelWorkGroupInfo",
                 clGetKernelWorkGroupInfo(kernel, d->id, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local, &local, NULL));
    RETURN_IF((int64_t)most < stage->work_group_size, UNSUPPORTED,
              "%s was built for %lld work-items; the built kernel takes %zu", stage->name,
              (long long)stage->work_group_size, most);
    RETURN_IF(local > (cl_ulong)d->profile.local_bytes, UNSUPPORTED,
              "%s needs %llu bytes of local memory as built; the device has %lld", stage->name,
              (unsigned long long)local, (long long)d->profile.local_bytes);
    return CLATTN_STATUS_SUCCESS;
}

static void kernel_drop(device_kernel *k)
{
    if (k->kernel) clReleaseKernel(k->kernel);
    if (k->program) clReleaseProgram(k->program);
    k->kernel = NULL;
    k->program = NULL;
}

void clattn__device_kernel_free(device_kernel *k)
{
    if (!k) return;
    kernel_drop(k);
    pthread_mutex_destroy(&k->lock);
    free(k->key);
    free(k->cache_key);
    free(k);
}

static clattn_status kernel_build(const struct device *d, const device_stage *stage, const char *options,
                                  const device_choice *choice, const char *all, const program_record *record,
                                  device_kernel *k)
{
    cl_int code;
    FORWARD(program_create(d, all, record, &k->program));
    FORWARD(program_build(d, k->program, stage, options));
    if (!record && choice->axes[AXIS_MMA] == ENGINE_WGMMA) {
        cl_program covered = k->program;
        k->program = NULL;
        clattn_status status = clattn__ptx_uncover_90a(d, covered, &k->program);
        clReleaseProgram(covered);
        FORWARD(status);
        FORWARD(program_build(d, k->program, stage, options));
    }
    k->kernel = clCreateKernel(k->program, stage->name, &code);
    RETURN_IF_CL("clCreateKernel", code);
    return check_fits(d, k->kernel, stage);
}

enum { WHY_SIZE = 512 };

static bool uses_disk(const struct device *d, const clattn_context *context)
{
    return d->cache.folder[0] && context->options.program_cache != CLATTN_PROGRAM_CACHE_OFF;
}

/* Fills k. why: it was built from source; "" when it was not. */
static clattn_status kernel_find(const struct device *d, const clattn_context *context, const device_stage *stage,
                                 const device_choice *choice, const char *options, const char *all, device_kernel *k,
                                 char why[WHY_SIZE])
{
    snprintf(why, WHY_SIZE, "%s",
             uses_disk(d, context) ? ""
             : d->cache.why[0]     ? d->cache.why
                                   : "options.program_cache is CLATTN_PROGRAM_CACHE_OFF");
    for (k->origin = FROM_APP; k->origin < FROM_SOURCE; k->origin++) {
        program_record r;
        if (d->has_bad_binaries || (k->origin == FROM_DISK && !uses_disk(d, context))) continue;
        if (!clattn__cache_find(&d->cache, k->origin, k->cache_key, &r, why, WHY_SIZE)) continue;
        const clattn_status status = kernel_build(d, stage, options, choice, all, &r, k);
        free(r.data);
        if (status == CLATTN_STATUS_SUCCESS) return status;
        kernel_drop(k);
        snprintf(why, WHY_SIZE, "the binary was refused: %.400s", clattn_last_error()->message);
    }
    return kernel_build(d, stage, options, choice, all, NULL, k);
}

static clattn_status kernel_make(struct device *d, const clattn_context *context, const device_stage *stage,
                                 const device_choice *choice, const char *options, const char *key, device_kernel **out,
                                 char why[WHY_SIZE])
{
    char *all = source_make(stage, choice);
    RETURN_IF(!all, OUT_OF_HOST_MEMORY, "no room for the source of %s", stage->name);
    device_kernel *k = calloc(1, sizeof *k);
    if (k) {
        pthread_mutex_init(&k->lock, NULL);
        k->key = strdup(key);
        k->cache_key = clattn__cache_key(&d->cache, options, all);
    }
    const clattn_status status = k && k->key && k->cache_key
                                     ? kernel_find(d, context, stage, choice, options, all, k, why)
                                     : clattn__fail(CLATTN_STATUS_OUT_OF_HOST_MEMORY, 0, "no room for a kernel");
    free(all);
    if (status != CLATTN_STATUS_SUCCESS) {
        clattn__device_kernel_free(k);
        return status;
    }
    *out = k;
    return CLATTN_STATUS_SUCCESS;
}

clattn_status clattn__device_kernel(struct device *d, clattn_context *context, const device_stage *stage,
                                    const device_choice *choice, device_kernel **out)
{
    static const char *const origins[] = {"the app", "disk", "source"};
    char options[OPTIONS_SIZE], why[WHY_SIZE] = "";
    const char *score = score_source_of(stage, choice->score_source);
    const char *derivative = score_source_of(stage, choice->score_derivative);
    if (!score) score = "";
    if (!derivative) derivative = "";
    options_make(d, choice, stage, options, sizeof options);
    const size_t size = strlen(options) + strlen(score) + strlen(derivative) + 96;
    char *key = malloc(size);
    RETURN_IF(!key, OUT_OF_HOST_MEMORY, "no room for a kernel's key of %zu bytes", size);
    snprintf(key, size, "%s %s\n%zu %s\n%s", stage->name, options, strlen(score), score, derivative);
    clattn_status status = CLATTN_STATUS_SUCCESS;
    pthread_mutex_lock(&d->lock);
    device_kernel *k = d->kernels;
    bool built = false;
    while (k && strcmp(k->key, key)) k = k->next;
    if (!k) {
        status = kernel_make(d, context, stage, choice, options, key, &k, why);
        built = status == CLATTN_STATUS_SUCCESS;
        if (built) {
            k->next = d->kernels;
            d->kernels = k;
        }
    }
    pthread_mutex_unlock(&d->lock);
    free(key);
    if (built)
        clattn__log(context, LOG_BUILD, "%s %s from %s%s%s", stage->name, options, origins[k->origin],
                    k->origin == FROM_SOURCE ? ": " : "", k->origin == FROM_SOURCE ? why : "");
    if (status != CLATTN_STATUS_SUCCESS) clattn__log(context, LOG_BUILD, "%s", clattn_last_error()->message);
    if (status == CLATTN_STATUS_SUCCESS) *out = k;
    return status;
}

/* ---- binaries */

bool clattn__device_kernels_retire(struct device *d, device_kernel *const *kernels, int n)
{
    bool found = false;
    pthread_mutex_lock(&d->lock);
    for (int i = 0; i < n; i++) {
        device_kernel **at = &d->kernels, *k = kernels[i];
        if (!k || k->origin == FROM_SOURCE) continue;
        found = true;
        while (*at && *at != k) at = &(*at)->next;
        if (!*at) continue; /* another thread was first */
        *at = k->next;
        k->next = d->retired; /* other plans may have it */
        d->retired = k;
    }
    d->has_bad_binaries = d->has_bad_binaries || found;
    pthread_mutex_unlock(&d->lock);
    return found;
}

void clattn__device_kernel_keep(const struct device *d, const clattn_context *context, const device_stage *stage,
                                device_kernel *k)
{
    char what[1200] = "the driver has no binary";
    program_record r;
    if (k->origin != FROM_SOURCE || !uses_disk(d, context) || atomic_exchange(&k->is_kept, true)) return;
    const clattn_status status = clattn__record_make(k->cache_key, k->program, d->id, &r);
    if (status != CLATTN_STATUS_SUCCESS) snprintf(what, sizeof what, "%s", clattn_last_error()->message);
    const bool kept =
        status == CLATTN_STATUS_SUCCESS && r.data && clattn__cache_store(&d->cache, &r, what, sizeof what);
    free(r.data);
    clattn__log(context, LOG_BUILD, "%s %s on disk: %s", stage->name, kept ? "kept" : "not kept", what);
}

/* The kernels of a plan are different ones: each stage has its own file. */
clattn_status clattn__device_plan_binaries(const device_plan *plan, void *data, size_t size, size_t *needed)
{
    program_record records[STAGES_MOST] = {{0}};
    size_t bytes = 0;
    clattn_status status = clattn__device_check_process(plan->device);
    for (int i = 0; i < plan->choice.n_stages && status == CLATTN_STATUS_SUCCESS; i++) {
        const device_kernel *k = plan->kernels[i];
        status = clattn__record_make(k->cache_key, k->program, plan->device->id, &records[i]);
        bytes += records[i].size;
    }
    if (status == CLATTN_STATUS_SUCCESS && data && size < bytes)
        status =
            clattn__fail(CLATTN_STATUS_INVALID_ARGUMENT, 0, "size is %zu; the binaries take %zu bytes", size, bytes);
    if (status == CLATTN_STATUS_SUCCESS) *needed = bytes;
    for (int i = 0; i < plan->choice.n_stages; i++) {
        if (status == CLATTN_STATUS_SUCCESS && data && records[i].size) {
            memcpy(data, records[i].data, records[i].size);
            data = (char *)data + records[i].size;
        }
        free(records[i].data);
    }
    return status;
}

clattn_status clattn__device_add_binaries(struct device *d, const void *data, size_t size)
{
    FORWARD(clattn__device_check_process(d)); /* in a forked child the lock may stay locked */
    pthread_mutex_lock(&d->lock);
    const clattn_status status = clattn__cache_give(&d->cache, data, size);
    pthread_mutex_unlock(&d->lock);
    return status;
}
