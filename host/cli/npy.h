/* NumPy's .npy files, versions 1.0 to 3.0: C order, little-endian. */
#ifndef CLATTN_CLI_NPY_H
#define CLATTN_CLI_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { NPY_MAX_RANK = 8 };

/* XX(name, bytes, text) */
#define NPY_TYPE_MAP(XX)                                                                                               \
    XX(F2, 2, "f2")                                                                                                    \
    XX(F4, 4, "f4")                                                                                                    \
    XX(F8, 8, "f8")                                                                                                    \
    XX(I4, 4, "i4")                                                                                                    \
    XX(I8, 8, "i8")                                                                                                    \
    XX(B1, 1, "b1")

typedef enum npy_type {
#define NPY_TYPE_ENUM(name, bytes, text) NPY_##name,
    NPY_TYPE_MAP(NPY_TYPE_ENUM)
#undef NPY_TYPE_ENUM
} npy_type;

typedef struct npy_array {
    npy_type type;
    int rank;
    int64_t shape[NPY_MAX_RANK];
    int64_t count; /* elements */
    void *data;    /* the caller's, from cli_alloc */
} npy_array;

size_t npy_type_size(npy_type type);
const char *npy_type_name(npy_type type);

/* "[2, 3, 4]"; at most NPY_MAX_RANK dimensions. */
typedef struct shape_text {
    char text[NPY_MAX_RANK * 21 + 3];
} shape_text;
shape_text npy_shape_text(int rank, const int64_t *shape);

/* Reads the dictionary of a header, `length` characters of it, into everything but data. NULL, or what is wrong. */
const char *npy_parse_header(const char *text, size_t length, npy_array *a);

/* Reads a whole file. On failure it has said why, naming the flag and the path, and a->data is NULL. */
int npy_read(const char *flag, const char *path, npy_array *a);

/* Writes version 1.0; false when the stream failed. */
bool npy_write(FILE *to, npy_type type, int rank, const int64_t *shape, const void *data);

#endif
