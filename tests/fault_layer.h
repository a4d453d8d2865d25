/* What a test says to the fault layer in its own process, and asks of it. Get it with fault_layer_find(). */
#ifndef CLATTN_TEST_FAULT_LAYER_H
#define CLATTN_TEST_FAULT_LAYER_H

#include <stddef.h>
#include <stdint.h>

typedef struct fault_counts {
    long calls;    /* since the last arm; calls that only count references are not among them */
    long injected; /* of those, failed by the layer */
    long live;     /* references to objects that are the app's to release */
    long misuses;  /* dead or mistaken objects handed in, releases too many, host memory of two buffers that overlaps */
    long overruns; /* buffers whose last bytes were written past the end (guards only) */
    size_t bytes, most_bytes; /* of live buffers; the most since the last arm */
    int32_t code;             /* of the first failure injected since the last arm of one */
    const char *function;     /* that failed then, "" for none */
} fault_counts;

typedef struct fault_layer {
    /* The nth call from now on fails, counted from 1, and with sticky each after it; 0: none. */
    void (*arm)(long nth, int sticky);
    fault_counts (*counts)(void);
    /* What lives, a line an object with the call that made it; misuses. */
    void (*report)(void);
    /* Buffers end at a page that nobody may touch, filled with NaN before. */
    void (*guard_buffers)(int on);
    /* Launches of more work-items fail, as on a GPU that a watchdog guards; 0: no limit. */
    void (*limit_work_items)(size_t most);
} fault_layer;

/* Exported by the layer under this name. */
typedef const fault_layer *(fault_layer_get_fn)(void);

/* NULL when OPENCL_LAYERS did not name it or OpenCL has not been called yet. */
const fault_layer *fault_layer_find(void);

#endif
