/* The thread's last error, and the two macros that set or pass it on. */
#ifndef CLATTN_ERROR_H
#define CLATTN_ERROR_H

#include <clattn/status.h>

/* Keeps the sentence for clattn_last_error() and returns status. cl_error is 0 unless an OpenCL call failed. */
clattn_status clattn__fail(clattn_status status, int32_t cl_error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A copy of the thread's last error, to give back after an attempt whose failure is not the caller's. */
typedef struct error_state {
    clattn_status status;
    int32_t cl_error;
    char message[1024];
} error_state;

void clattn__error_save(error_state *state);
void clattn__error_restore(const error_state *state);

#define RETURN_IF(condition, status, ...)                                                                              \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            clattn__fail(CLATTN_STATUS_##status, 0, __VA_ARGS__);                                                      \
            return CLATTN_STATUS_##status;                                                                             \
        }                                                                                                              \
    } while (0)

#define FORWARD(call)                                                                                                  \
    do {                                                                                                               \
        const clattn_status forward_status_ = (call);                                                                  \
        if (forward_status_ != CLATTN_STATUS_SUCCESS) return forward_status_;                                          \
    } while (0)

#endif
