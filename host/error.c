#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_message[sizeof((error_state *)0)->message];
static _Thread_local clattn_error last_error;

clattn_status clattn__fail(clattn_status status, int32_t cl_error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_message, sizeof last_message, format, arguments);
    va_end(arguments);
    last_error.status = status;
    last_error.cl_error = cl_error;
    last_error.message = last_message;
    return status;
}

const clattn_error *clattn_last_error(void)
{
    if (!last_error.message) last_error.message = "";
    return &last_error;
}

void clattn__error_save(error_state *state)
{
    state->status = last_error.status;
    state->cl_error = last_error.cl_error;
    memcpy(state->message, last_message, sizeof last_message);
}

void clattn__error_restore(const error_state *state)
{
    last_error.status = state->status;
    last_error.cl_error = state->cl_error;
    memcpy(last_message, state->message, sizeof last_message);
    last_error.message = last_message; /* it may be another thread's */
}

const char *clattn_status_name(clattn_status status)
{
    switch (status) {
#define NAME(name, value, text)                                                                                        \
    case CLATTN_STATUS_##name: return #name;
        CLATTN_STATUS_MAP(NAME)
#undef NAME
    default: return "UNKNOWN";
    }
}

const char *clattn_status_text(clattn_status status)
{
    switch (status) {
#define TEXT(name, value, text)                                                                                        \
    case CLATTN_STATUS_##name: return text;
        CLATTN_STATUS_MAP(TEXT)
#undef TEXT
    default: return "unknown status";
    }
}
