/* Text that grows to a fixed size and is cut there. */
#ifndef CLATTN_TEXT_H
#define CLATTN_TEXT_H

#include <stdarg.h>
#include <stdio.h>

typedef struct text {
    char *data;
    size_t size, length; /* room; what a large enough room would hold, as snprintf counts */
} text;

static inline __attribute__((format(printf, 2, 3))) void text_add(text *t, const char *format, ...)
{
    va_list arguments;
    const size_t at = t->length < t->size ? t->length : t->size;
    va_start(arguments, format);
    const int n = vsnprintf(t->size ? t->data + at : NULL, t->size - at, format, arguments);
    va_end(arguments);
    if (n > 0) t->length += (size_t)n;
}
#endif
