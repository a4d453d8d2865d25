/* Any text: read or refused, and what was read comes back from its own text. */
#include <stdlib.h>
#include <string.h>

#include <clattn/clattn.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { MOST_SEQUENCES = 256 };
    clattn_problem p, again;
    uint64_t seed;
    int64_t cu_q[MOST_SEQUENCES + 1], cu_kv[MOST_SEQUENCES + 1];
    char *text = malloc(size + 1);
    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = 0;
    memset(&p, 0, sizeof p);
    const clattn_status status = clattn_problem_from_text(text, &p);
    if (status != CLATTN_STATUS_SUCCESS && (p.struct_size || !clattn_last_error()->message[0])) abort();
    if (status == CLATTN_STATUS_SUCCESS) {
        if (clattn_problem_check(&p) != CLATTN_STATUS_SUCCESS) abort();
        if (clattn_problem_text_args(text, &seed, cu_q, cu_kv) != CLATTN_STATUS_SUCCESS && !p.varlen) abort();
        const size_t length = clattn_problem_to_text(&p, NULL, 0);
        char *own = malloc(length + 1);
        if (own && clattn_problem_to_text(&p, own, length + 1) != length) abort();
        if (own && clattn_problem_from_text(own, &again) != CLATTN_STATUS_SUCCESS) abort();
        char *twice = malloc(length + 1); /* the strides of one head alone may differ in what they do not tell */
        if (own && twice && (clattn_problem_to_text(&again, twice, length + 1) != length || strcmp(own, twice)))
            abort();
        free(twice);
        free(own);
    }
    free(text);
    return 0;
}
