/* Built programs that outlive the process: one file a program in a folder, or records that the app takes and gives. A file
 * is one record: header, key, binary, checksum. The key is everything that decides what a binary is. */
#ifndef CLATTN_OPENCL_CACHE_H
#define CLATTN_OPENCL_CACHE_H

#include <stdbool.h>

#include <clattn/opencl.h>

/* In the order in which they are tried. */
typedef enum program_origin { FROM_APP, FROM_DISK, FROM_SOURCE } program_origin;

typedef struct program_record {
    unsigned char *data; /* to be freed; NULL: there is none, or it is another's */
    size_t size;
    const char *key; /* in the record, as is the binary; not terminated */
    const unsigned char *binary;
    size_t key_bytes, binary_bytes;
} program_record;

typedef struct given_record {
    struct given_record *next;
    program_record record;
} given_record;

/* Of one device. The device's lock guards `given`; the rest does not change. */
typedef struct program_cache {
    char identity[8192]; /* of clattn, platform, device, driver and host CPU; "": not known, and nothing is kept */
    char folder[1024];   /* absolute, or as CLATTN_CACHE_DIR has it; "": no disk */
    char why[64];        /* there is none */
    uint64_t most_bytes; /* of all files */
    given_record *given; /* by the app */
} program_cache;

/* Reads the environment and asks the device who it is. */
clattn_status clattn__cache_open(program_cache *c, cl_device_id id);
void clattn__cache_close(program_cache *c);

/* The key of what these options make of this source, to be freed; NULL when out of memory. "" when nothing is kept. */
char *clattn__cache_key(const program_cache *c, const char *options, const char *source);

/* What the app gave or the disk has under the key; `why` there is none on disk, not written otherwise. */
bool clattn__cache_find(const program_cache *c, program_origin origin, const char *key, program_record *record,
                        char *why, size_t why_size);

/* Puts the record in the key's file, whatever was there, and drops the files longest unused beyond the cache's size. `what`:
 * a sentence, in both cases. */
bool clattn__cache_store(const program_cache *c, const program_record *record, char *what, size_t what_size);

/* The size of the device's binary, and with `to` its bytes, which must still be as many. */
cl_int clattn__binary_get(cl_program program, cl_device_id id, size_t *size, unsigned char *to);

/* The record of a program that has run, for the device. No data when the driver has no binary or the key is "". */
clattn_status clattn__record_make(const char *key, cl_program program, cl_device_id id, program_record *record);

/* Copies records that the app hands in, one after the other: all or none. */
clattn_status clattn__cache_give(program_cache *c, const void *data, size_t size);

#endif
