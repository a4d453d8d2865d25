/* A choice -> a built kernel: the -D list, the source with its includes put in, the build, the device's cache. */
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

static void options_make(const device_choice *choice, const device_stage *stage, char *to, size_t size)
{
    text t = {to, size, 0};
    text_add(&t, "-cl-std=CL1.2 -w"); /* PoCL counts warnings on stderr */
    for (int i = 0; i < AXIS_COUNT; i++)
        text_add(&t, " -D%s=%d", clattn__axis_names[i], clattn__plan_axis(choice, stage, (axis)i));
}

static clattn_status build_failed(const struct device *d, cl_program program, const char *name, const char *options,
                                  cl_int code)
{
    size_t size = 0;
    clGetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size);
    char *log = calloc(1, size + 1);
    if (log) clGetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, size, log, NULL);
    for (char *c = log; c && *c; c++)
        if (*c == '\n') *c = ' ';
    const char *error = log ? strstr(log, "error") : NULL;
    if (!error) error = log ? log : "";
    const clattn_status status = clattn__fail(CLATTN_STATUS_BUILD_FAILED, code, "%s did not build on %s: %.600s (%s)",
                                              name, d->profile.name, error, options);
    free(log);
    return status;
}

static clattn_status program_build(struct device *d, const device_stage *stage, const char *options,
                                   const device_choice *choice, cl_program *out)
{
    cl_int code;
    char *data = source_make(stage, choice);
    RETURN_IF(!data, OUT_OF_HOST_MEMORY, "no room for the source of %s", stage->name);
    const char *texts[] = {data};
    cl_program program = clCreateProgramWithSource(d->cl, 1, texts, NULL, &code);
    free(data);
    RETURN_IF_CL("clCreateProgramWithSource", code);
    code = clBuildProgram(program, 1, &d->id, options, NULL, NULL);
    if (code != CL_SUCCESS) {
        const clattn_status status = code == CL_OUT_OF_HOST_MEMORY || code == CL_OUT_OF_RESOURCES
                                         ? clattn__cl_fail("clBuildProgram", code)
                                         : build_failed(d, program, stage->name, options, code);
        clReleaseProgram(program);
        return status;
    }
    *out = program;
    return CLATTN_STATUS_SUCCESS;
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

void clattn__device_kernel_free(device_kernel *k)
{
    if (!k) return;
    if (k->kernel) clReleaseKernel(k->kernel);
    if (k->program) clReleaseProgram(k->program);
    pthread_mutex_destroy(&k->lock);
    free(k->key);
    free(k);
}

static clattn_status kernel_make(struct device *d, const device_stage *stage, const device_choice *choice,
                                 const char *key, device_kernel **out)
{
    cl_int code;
    char options[OPTIONS_SIZE];
    options_make(choice, stage, options, sizeof options);
    device_kernel *k = calloc(1, sizeof *k);
    RETURN_IF(!k, OUT_OF_HOST_MEMORY, "no room for a kernel");
    pthread_mutex_init(&k->lock, NULL);
    k->key = strdup(key);
    clattn_status status = k->key ? program_build(d, stage, options, choice, &k->program)
                                  : clattn__fail(CLATTN_STATUS_OUT_OF_HOST_MEMORY, 0, "no room for a kernel");
    if (status == CLATTN_STATUS_SUCCESS) {
        k->kernel = clCreateKernel(k->program, stage->name, &code);
        status = code == CL_SUCCESS ? check_fits(d, k->kernel, stage) : clattn__cl_fail("clCreateKernel", code);
    }
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
    char options[OPTIONS_SIZE];
    const char *score = score_source_of(stage, choice->score_source);
    const char *derivative = score_source_of(stage, choice->score_derivative);
    if (!score) score = "";
    if (!derivative) derivative = "";
    options_make(choice, stage, options, sizeof options);
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
        status = kernel_make(d, stage, choice, key, &k);
        built = status == CLATTN_STATUS_SUCCESS;
        if (built) {
            k->next = d->kernels;
            d->kernels = k;
        }
    }
    pthread_mutex_unlock(&d->lock);
    free(key);
    if (built) clattn__log(context, LOG_BUILD, "%s %s", stage->name, options);
    if (status != CLATTN_STATUS_SUCCESS) clattn__log(context, LOG_BUILD, "%s", clattn_last_error()->message);
    if (status == CLATTN_STATUS_SUCCESS) *out = k;
    return status;
}
