// Functions of both lane types, and their scalar forms. Each section is printed only where a kernel needs it.

// [any]
INLINE bool any(vint mask) {
  lane_int r = 0;
  for (int i = 0; i < VL; i++) r |= mask[i];
  return r != 0;
}

// [max_number]
// The larger number; y where either is NaN, as the machine instruction has it.
INLINE vreal max_number(vreal x, vreal y) {
#if defined(__AVX512F__)
  vreal r;
  if (sizeof(real) == 4) __asm__("vmaxps %2, %1, %0" : "=v"(r) : "v"(x), "v"(y));
  else __asm__("vmaxpd %2, %1, %0" : "=v"(r) : "v"(x), "v"(y));
  return r;
#else
  return x > y ? x : y;
#endif
}

// [min_number]
INLINE vreal min_number(vreal x, vreal y) {
#if defined(__AVX512F__)
  vreal r;
  if (sizeof(real) == 4) __asm__("vminps %2, %1, %0" : "=v"(r) : "v"(x), "v"(y));
  else __asm__("vminpd %2, %1, %0" : "=v"(r) : "v"(x), "v"(y));
  return r;
#else
  return x < y ? x : y;
#endif
}

// [fold_sum]
INLINE void fold_sum(vreal& total, vreal x) { total += x; }
INLINE void fold_sum(real& total, real x) { total += x; }

// [fold_max]
INLINE void fold_max(vreal& total, vreal x) { total = max_number(total, x); }
INLINE void fold_max(real& total, real x) { total = x != x || x > total ? x : total; }

// [fold_min]
INLINE void fold_min(vreal& total, vreal x) { total = min_number(total, x); }
INLINE void fold_min(real& total, real x) { total = x != x || x < total ? x : total; }

// [maximum]
// NaN where either is NaN.
INLINE vreal maximum(vreal x, vreal y) { vreal m = x > y ? x : y; return x != x ? x : m; }
INLINE vint maximum(vint x, vint y) { return x > y ? x : y; }
INLINE real maximum(real x, real y) { return x != x || x > y ? x : y; }
INLINE long long maximum(long long x, long long y) { return x > y ? x : y; }
#if VL_IS_NARROW
INLINE vwide maximum(vwide x, vwide y) { return x > y ? x : y; }
#endif

// [minimum]
INLINE vreal minimum(vreal x, vreal y) { vreal m = x < y ? x : y; return x != x ? x : m; }
INLINE vint minimum(vint x, vint y) { return x < y ? x : y; }
INLINE real minimum(real x, real y) { return x != x || x < y ? x : y; }
INLINE long long minimum(long long x, long long y) { return x < y ? x : y; }
#if VL_IS_NARROW
INLINE vwide minimum(vwide x, vwide y) { return x < y ? x : y; }
#endif

// [absolute]
INLINE vreal absolute(vreal x) { return abs(x); }
INLINE vint absolute(vint x) { return x < vint{} ? -x : x; }
INLINE real absolute(real x) { return sizeof(real) == 4 ? __builtin_fabsf(x) : __builtin_fabs(x); }
INLINE long long absolute(long long x) { return x < 0 ? -x : x; }
#if VL_IS_NARROW
INLINE vwide absolute(vwide x) { return x < vwide{} ? -x : x; }
#endif

// [sign]
// 1, 0 or -1, and NaN for NaN.
INLINE vreal sign(vreal x) {
  const vreal s = select(x > vreal{}, splat(1), select(x < vreal{}, splat(-1), vreal{}));
  return x != x ? x : s;
}
INLINE vint sign(vint x) { return (x < vint{}) - (x > vint{}); }
INLINE real sign(real x) { return x != x ? x : real((x > 0) - (x < 0)); }
INLINE long long sign(long long x) { return (x > 0) - (x < 0); }
#if VL_IS_NARROW
INLINE vwide sign(vwide x) { return (x < vwide{}) - (x > vwide{}); }
#endif

// [floordiv]
// Rounds to minus infinity, as in Python; a zero divisor gives 0.
INLINE long long floordiv(long long x, long long y) {
  if (y == 0) return 0;
  const long long q = x / y;
  return q - (x % y != 0 && (x < 0) != (y < 0));
}
INLINE vint floordiv(vint x, vint y) { vint r; for (int i = 0; i < VL; i++) r[i] = (lane_int)floordiv((long long)x[i], (long long)y[i]); return r; }
INLINE real floordiv(real x, real y) { return sizeof(real) == 4 ? __builtin_floorf(x / y) : __builtin_floor(x / y); }
INLINE vreal floordiv(vreal x, vreal y) { return floor(x / y); }
#if VL_IS_NARROW
INLINE vwide floordiv(vwide x, vwide y) { vwide r; for (int i = 0; i < VL; i++) r[i] = floordiv((long long)x[i], (long long)y[i]); return r; }
#endif

// [mod]
// Has the sign of the divisor, as in Python.
INLINE long long mod(long long x, long long y) { return x - floordiv(x, y) * y; }
INLINE vint mod(vint x, vint y) { return x - floordiv(x, y) * y; }
INLINE real mod(real x, real y) { const real r = sizeof(real) == 4 ? __builtin_fmodf(x, y) : __builtin_fmod(x, y); return r != 0 && (r < 0) != (y < 0) ? r + y : r; }
INLINE vreal mod(vreal x, vreal y) { vreal r; for (int i = 0; i < VL; i++) r[i] = mod((real)x[i], (real)y[i]); return r; }
#if VL_IS_NARROW
INLINE vwide mod(vwide x, vwide y) { return x - floordiv(x, y) * y; }
#endif

// [bit_length]
INLINE long long bit_length(long long x) { return x == 0 ? 0 : 64 - __builtin_clzll((unsigned long long)(x < 0 ? -x : x)); }
INLINE vint bit_length(vint x) { vint r; for (int i = 0; i < VL; i++) r[i] = (lane_int)bit_length((long long)x[i]); return r; }
#if VL_IS_NARROW
INLINE vint bit_length(vwide x) { vint r; for (int i = 0; i < VL; i++) r[i] = (lane_int)bit_length((long long)x[i]); return r; }
#endif

// [rsqrt]
INLINE vreal rsqrt(vreal x) { return splat(1) / sqrt(x); }
INLINE real rsqrt(real x) { return real(1) / sqrt(x); }

// [pow]
INLINE real pow(real x, real y) { return sizeof(real) == 4 ? __builtin_powf(x, y) : __builtin_pow(x, y); }
static __attribute__((noinline)) vreal pow(vreal x, vreal y) { vreal r; for (int i = 0; i < VL; i++) r[i] = pow((real)x[i], (real)y[i]); return r; }

// [exp]
INLINE real exp(real x) { return sizeof(real) == 4 ? __builtin_expf(x) : __builtin_exp(x); }

// [exp2]
INLINE real exp2(real x) { return sizeof(real) == 4 ? __builtin_exp2f(x) : __builtin_exp2(x); }

// [expm1]
INLINE real expm1(real x) { return sizeof(real) == 4 ? __builtin_expm1f(x) : __builtin_expm1(x); }

// [log]
INLINE real log(real x) { return sizeof(real) == 4 ? __builtin_logf(x) : __builtin_log(x); }

// [log2]
INLINE real log2(real x) { return sizeof(real) == 4 ? __builtin_log2f(x) : __builtin_log2(x); }

// [log1p]
INLINE real log1p(real x) { return sizeof(real) == 4 ? __builtin_log1pf(x) : __builtin_log1p(x); }

// [sqrt]
INLINE real sqrt(real x) { return sizeof(real) == 4 ? __builtin_sqrtf(x) : __builtin_sqrt(x); }

// [tanh]
INLINE real tanh(real x) { return sizeof(real) == 4 ? __builtin_tanhf(x) : __builtin_tanh(x); }

// [erf]
INLINE real erf(real x) { return sizeof(real) == 4 ? __builtin_erff(x) : __builtin_erf(x); }

// [sin]
INLINE real sin(real x) { return sizeof(real) == 4 ? __builtin_sinf(x) : __builtin_sin(x); }

// [cos]
INLINE real cos(real x) { return sizeof(real) == 4 ? __builtin_cosf(x) : __builtin_cos(x); }

// [floor]
INLINE real floor(real x) { return sizeof(real) == 4 ? __builtin_floorf(x) : __builtin_floor(x); }

// [ceil]
INLINE real ceil(real x) { return sizeof(real) == 4 ? __builtin_ceilf(x) : __builtin_ceil(x); }

// [trunc]
INLINE real trunc(real x) { return sizeof(real) == 4 ? __builtin_truncf(x) : __builtin_trunc(x); }

// [round]
INLINE real round(real x) { return sizeof(real) == 4 ? __builtin_rintf(x) : __builtin_rint(x); }

// [sigmoid]
INLINE real sigmoid(real x) { return real(1) / (real(1) + exp(-x)); }
