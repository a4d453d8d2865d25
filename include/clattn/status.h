/* Statuses and the last error. One list makes the enum, the names and the texts. */
#ifndef CLATTN_STATUS_H
#define CLATTN_STATUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(CLATTN_STATIC)
#define CLATTN_API
#elif defined(_WIN32)
#ifdef CLATTN_BUILDING
#define CLATTN_API __declspec(dllexport)
#else
#define CLATTN_API __declspec(dllimport)
#endif
#else
#define CLATTN_API __attribute__((visibility("default")))
#endif

/* XX(name, value, text) */
#define CLATTN_STATUS_MAP(XX)                                                                                          \
    XX(SUCCESS, 0, "success")                                                                                          \
    XX(INVALID_ARGUMENT, 1, "an argument is not legal")                                                                \
    XX(UNSUPPORTED, 2, "legal, but no kernel here can do it")                                                          \
    XX(OUT_OF_HOST_MEMORY, 3, "out of host memory")                                                                    \
    XX(OUT_OF_DEVICE_MEMORY, 4, "out of device memory")                                                                \
    XX(BUILD_FAILED, 5, "a kernel did not build")                                                                      \
    XX(OPENCL_ERROR, 6, "an OpenCL call failed")                                                                       \
    XX(NO_DEVICE, 7, "no such OpenCL device")                                                                          \
    XX(INTERNAL, 8, "a defect in clattn")

typedef enum clattn_status {
#define CLATTN_STATUS_ENUM(name, value, text) CLATTN_STATUS_##name = value,
    CLATTN_STATUS_MAP(CLATTN_STATUS_ENUM)
#undef CLATTN_STATUS_ENUM
        CLATTN_STATUS_COUNT
} clattn_status;

/* What went wrong in the calling thread's latest failed call. */
typedef struct clattn_error {
    clattn_status status; /* CLATTN_STATUS_SUCCESS when no call of this thread has failed yet */
    int32_t cl_error;     /* the cl_int of the OpenCL call that failed, 0 when none did */
    const char *message;  /* one sentence with the field and the numbers; "" when none. Owned by clattn */
} clattn_error;

/* The name without its prefix, "INVALID_ARGUMENT". Never NULL: "UNKNOWN" for a value outside the enum. */
CLATTN_API const char *clattn_status_name(clattn_status status);

/* A few words, "an argument is not legal". Never NULL. */
CLATTN_API const char *clattn_status_text(clattn_status status);

/* The calling thread's latest failure; calls that succeed leave it alone. Never NULL. What it points to belongs to
 * the thread and is overwritten by the thread's next failing call. */
CLATTN_API const clattn_error *clattn_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
