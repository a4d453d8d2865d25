/* For ci/offline alone: what Intel's driver declares where a device has the extension. Never given to a device. */
float8 __attribute__((overloadable)) intel_sub_group_f16_f16_matrix_mad_k16(short8 a, int8 b, float8 c);
float8 __attribute__((overloadable)) intel_sub_group_bf16_bf16_matrix_mad_k16(short8 a, int8 b, float8 c);
ushort __attribute__((overloadable)) intel_convert_bfloat16_as_ushort(float x);
