/* Any file: an array that is all there, or a refusal. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int cli_fail(int code, const char *format, ...) { return (void)format, code; }

void *cli_alloc(const char *what, int64_t count, size_t size)
{
    (void)what;
    if (count < 0 || count > 1 << 24) abort(); /* no file here is as long as that */
    return malloc((size_t)count * size + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    npy_array a;
    const int fd = memfd_create("npy", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const int code = npy_read("--q", path, &a);
    close(fd);
    if ((code == CLI_OK) != (a.data != NULL)) abort();
    if (code == CLI_OK) {
        int64_t n = 1;
        for (int i = 0; i < a.rank; i++) n *= a.shape[i];
        if (n != a.count || n * (int64_t)npy_type_size(a.type) > (int64_t)size) abort();
        free(a.data);
    }
    return 0;
}
