/* Whether a device's matrix engine may be trusted. */
#ifndef CLATTN_ENGINE_H
#define CLATTN_ENGINE_H

#include "device.h"

/* SUCCESS when attn_fwd_mma gives attn_fwd's numbers on a small problem of this type, else why it is left aside. Found out
 * once per context. */
clattn_status clattn__engine_check(clattn_context *context, device *d, clattn_dtype dtype);

#endif
