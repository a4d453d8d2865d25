/* A picture of one head's scores or probs. */
#ifndef CLATTN_CLI_MAP_H
#define CLATTN_CLI_MAP_H

#include "inputs.h"
#include "output.h"

/* Is there such a head, and can it be drawn: CLI_USAGE and a sentence when not. */
int map_check(const options *o, const inputs *in);

/* Draws what o asks for into an open output. */
int map_write(const options *o, const inputs *in, output *out);

#endif
