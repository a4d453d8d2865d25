/* For ci/offline alone: what OpenCL's built-in library does, by the compiler's own builtins, so that a kernel
 * compiles for a GPU that is not there. Never given to a device. */
#ifndef OFFLINE_SHIM_H
#define OFFLINE_SHIM_H
#define SHIM static inline __attribute__((always_inline, overloadable))

#ifdef __NVPTX__
SHIM size_t shim_local_id(uint d) { return __nvvm_read_ptx_sreg_tid_x(); }
SHIM size_t shim_group_id(uint d) { return __nvvm_read_ptx_sreg_ctaid_x(); }
SHIM void shim_barrier(uint flags) { __syncthreads(); }
SHIM float shim_exp2(float x)
{
    float y;
    __asm__("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
SHIM float shim_log2(float x)
{
    float y;
    __asm__("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
SHIM size_t shim_local_id(uint d) { return __builtin_amdgcn_workitem_id_x(); }
SHIM size_t shim_group_id(uint d) { return __builtin_amdgcn_workgroup_id_x(); }
SHIM void shim_barrier(uint flags)
{
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
SHIM float shim_exp2(float x) { return __builtin_exp2f(x); }
SHIM float shim_log2(float x) { return __builtin_log2f(x); }
#endif

SHIM float shim_exp(float x) { return shim_exp2(x * 1.44269504f); }
SHIM float shim_fmax(float a, float b) { return __builtin_fmaxf(a, b); }
SHIM float shim_fabs(float x) { return __builtin_fabsf(x); }
SHIM float shim_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SHIM float4 shim_fma(float4 a, float4 b, float4 c)
{
    return (float4)(__builtin_fmaf(a.x, b.x, c.x), __builtin_fmaf(a.y, b.y, c.y), __builtin_fmaf(a.z, b.z, c.z),
                    __builtin_fmaf(a.w, b.w, c.w));
}
SHIM int shim_atomic_or(volatile __local int *p, int x) { return __sync_fetch_and_or(p, x); }
SHIM int shim_atomic_max(volatile __local int *p, int x) { return __sync_fetch_and_max(p, x); }
SHIM uint4 shim_convert_uint4(ushort4 x) { return __builtin_convertvector(x, uint4); }

#define SHIM_MEMORY(space)                                                                                             \
    SHIM float shim_vload_half(size_t i, const space half *p) { return __builtin_load_halff(p + i); }                  \
    SHIM float4 shim_vload_half4(size_t i, const space half *p)                                                        \
    {                                                                                                                  \
        p += 4 * i;                                                                                                    \
        return (float4)(__builtin_load_halff(p), __builtin_load_halff(p + 1), __builtin_load_halff(p + 2),             \
                        __builtin_load_halff(p + 3));                                                                  \
    }                                                                                                                  \
    SHIM void shim_vstore_half(float x, size_t i, space half *p) { __builtin_store_halff(x, p + i); }                  \
    SHIM void shim_vstore_half4(float4 x, size_t i, space half *p)                                                     \
    {                                                                                                                  \
        p += 4 * i;                                                                                                    \
        __builtin_store_halff(x.x, p);                                                                                 \
        __builtin_store_halff(x.y, p + 1);                                                                             \
        __builtin_store_halff(x.z, p + 2);                                                                             \
        __builtin_store_halff(x.w, p + 3);                                                                             \
    }
SHIM_MEMORY(__global)
SHIM_MEMORY(__local)
SHIM_MEMORY(__private)

/* Aligned to one element, as OpenCL has it. */
#define SHIM_VECTOR(type, n)                                                                                           \
    typedef type##n shim_##type##n __attribute__((aligned(sizeof(type))));                                             \
    SHIM type##n shim_vload##n(size_t i, const __global type *p) { return ((const __global shim_##type##n *)p)[i]; }   \
    SHIM void shim_vstore##n(type##n x, size_t i, __global type *p) { ((__global shim_##type##n *)p)[i] = x; }
SHIM_VECTOR(float, 4)
SHIM_VECTOR(ushort, 4)
SHIM_VECTOR(ushort, 8)

#define get_local_id shim_local_id
#define get_group_id shim_group_id
#define barrier shim_barrier
#define exp2 shim_exp2
#define native_exp2 shim_exp2
#define log2 shim_log2
#define exp shim_exp
#define fmax shim_fmax
#define fabs shim_fabs
#define fma shim_fma
#define atomic_or shim_atomic_or
#define atomic_max shim_atomic_max
#define convert_uint4 shim_convert_uint4
#define vload_half shim_vload_half
#define vload_half4 shim_vload_half4
#define vstore_half_rte shim_vstore_half
#define vstore_half4_rte shim_vstore_half4
#define vload4 shim_vload4
#define vstore4 shim_vstore4
#define vload8 shim_vload8
#endif
