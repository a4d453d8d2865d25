/* Temporary files, their names, and their end. */
#define _XOPEN_SOURCE 700

#include "output.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

/* ---- temporary files must go with the process, whoever ends it: a signal, or an OpenCL driver that calls exit */

enum { MOST_TEMPORARIES = 8 };
static char *volatile temporaries[MOST_TEMPORARIES];

static void remove_temporaries(void)
{
    for (int i = 0; i < MOST_TEMPORARIES; i++)
        if (temporaries[i]) unlink(temporaries[i]);
}

static void remove_and_die(int number)
{
    remove_temporaries();
    signal(number, SIG_DFL);
    raise(number);
}

static void watch_ends(void)
{
    static bool watching;
    const int deadly[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    if (watching) return;
    watching = true;
    atexit(remove_temporaries);
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0]; i++) {
        struct sigaction before, now = {.sa_handler = remove_and_die};
        sigemptyset(&now.sa_mask);
        if (!sigaction(deadly[i], NULL, &before) && before.sa_handler == SIG_DFL) sigaction(deadly[i], &now, NULL);
    }
    signal(SIGXFSZ, SIG_IGN); /* a write past the limit then fails with EFBIG */
}

static void temporaries_replace(char *from, char *to)
{
    for (int i = 0; i < MOST_TEMPORARIES; i++)
        if (temporaries[i] == from) {
            temporaries[i] = to;
            return;
        }
}

/* ---- outputs */

static int fail(const output *o, int code, int error)
{
    return cli_fail(code, "%s %s: it cannot be written: %s", o->flag, o->path, strerror(error));
}

static mode_t default_mode(void)
{
    const mode_t mask = umask(0);
    umask(mask);
    return 0666 & ~mask;
}

/* The absolute name of the file that path leads to, or would make; NULL and errno. */
static char *target_of(const char *path, bool was_there)
{
    if (was_there) return realpath(path, NULL);
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    char *real = folder ? realpath(folder, NULL) : NULL;
    char *target = real && *name ? malloc(strlen(real) + 1 + strlen(name) + 1) : NULL;
    if (target) sprintf(target, "%s/%s", real, name);
    if (real && !*name) errno = EISDIR;
    free(folder);
    free(real);
    return target;
}

/* Makes o->temporary and its file, in the target's folder. */
static int open_temporary(output *o, mode_t mode)
{
    static const char name[] = ".clattn-XXXXXX";
    const size_t folder = (size_t)(strrchr(o->target, '/') - o->target) + 1;
    char *temporary = malloc(folder + sizeof name);
    if (!temporary) return fail(o, CLI_FAILED, errno);
    memcpy(temporary, o->target, folder);
    memcpy(temporary + folder, name, sizeof name);
    const int fd = mkstemp(temporary);
    if (fd < 0) {
        const int error = errno;
        free(temporary);
        return fail(o, CLI_USAGE, error);
    }
    o->temporary = temporary;
    temporaries_replace(NULL, temporary);
    if (fchmod(fd, mode) || !(o->file = fdopen(fd, "wb"))) {
        const int error = errno;
        close(fd);
        return fail(o, CLI_FAILED, error);
    }
    return CLI_OK;
}

int output_open(output *o, const char *flag, const char *path)
{
    struct stat s = {.st_mode = default_mode()};
    memset(o, 0, sizeof *o);
    o->flag = flag;
    o->path = path;
    o->was_there = !stat(path, &s);
    if (o->was_there && !S_ISREG(s.st_mode))
        return cli_fail(CLI_USAGE, "%s %s: it cannot be written: it is there, and no regular file", flag, path);
    if (o->was_there && access(path, W_OK)) return fail(o, CLI_USAGE, errno);
    o->target = target_of(path, o->was_there);
    if (!o->target) return fail(o, CLI_USAGE, errno);
    watch_ends();
    return open_temporary(o, s.st_mode & 0777);
}

static int fail_same(const file_flag *a, const file_flag *b)
{
    return cli_fail(CLI_USAGE, "%s %s: it is the same file as %s %s", a->flag, a->path, b->flag, b->path);
}

int output_open_all(output *outputs, const file_flag *wanted, int n, const file_flag *inputs, int n_inputs)
{
    for (int i = 0; i < n; i++) {
        if (!wanted[i].path) continue;
        const int code = output_open(&outputs[i], wanted[i].flag, wanted[i].path);
        if (code) return code;
        for (int j = 0; j < i; j++)
            if (wanted[j].path && !strcmp(outputs[i].target, outputs[j].target))
                return fail_same(&wanted[i], &wanted[j]);
        for (int j = 0; j < n_inputs; j++) {
            char *input = inputs[j].path ? realpath(inputs[j].path, NULL) : NULL;
            const bool same = input && !strcmp(outputs[i].target, input);
            free(input);
            if (same) return fail_same(&wanted[i], &inputs[j]);
        }
    }
    return CLI_OK;
}

int output_finish(output *o, int written)
{
    if (!o->file) return CLI_OK;
    int error = 0;
    if (!written || fflush(o->file) || fsync(fileno(o->file))) error = errno ? errno : EIO;
    if (fclose(o->file) && !error) error = errno;
    o->file = NULL;
    return error ? fail(o, CLI_FAILED, error) : CLI_OK;
}

static void forget_temporary(output *o)
{
    temporaries_replace(o->temporary, NULL);
    free(o->temporary);
    o->temporary = NULL;
}

int output_commit(output *outputs, int n)
{
    for (int i = 0; i < n; i++) {
        output *o = &outputs[i];
        if (!o->temporary) continue;
        if (rename(o->temporary, o->target)) {
            const int error = errno;
            for (int j = 0; j < i; j++)
                if (outputs[j].target && !outputs[j].was_there) unlink(outputs[j].target);
            return fail(o, CLI_FAILED, error);
        }
        forget_temporary(o);
    }
    return CLI_OK;
}

void output_close(output *outputs, int n)
{
    for (int i = 0; i < n; i++) {
        output *o = &outputs[i];
        if (o->file) fclose(o->file);
        if (o->temporary) {
            unlink(o->temporary);
            forget_temporary(o);
        }
        free(o->target);
        memset(o, 0, sizeof *o);
    }
}
