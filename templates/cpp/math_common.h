// Functions of both lane types, and their scalar forms. Each section is printed only where a kernel needs it.

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
// Passes over a NaN when numbers follow; what is made of the scores themselves still shows it.
INLINE void fold_max(vreal& total, vreal x) { total = max_number(total, x); }
INLINE void fold_max(real& total, real x) { total = x != x || x > total ? x : total; }

// [fold_min]
INLINE void fold_min(vreal& total, vreal x) { total = min_number(total, x); }
INLINE void fold_min(real& total, real x) { total = x != x || x < total ? x : total; }

// [maximum]
// NaN where either is NaN.
INLINE vreal maximum(vreal x, vreal y) { vreal m = x > y ? x : y; return x != x ? x : m; }
INLINE vint maximum(vint x, vint y) { return x > y ? x : y; }
#if VL_IS_NARROW
INLINE vwide maximum(vwide x, vwide y) { return x > y ? x : y; }
#endif

// [minimum]
INLINE vreal minimum(vreal x, vreal y) { vreal m = x < y ? x : y; return x != x ? x : m; }
INLINE vint minimum(vint x, vint y) { return x < y ? x : y; }
#if VL_IS_NARROW
INLINE vwide minimum(vwide x, vwide y) { return x < y ? x : y; }
#endif

// [absolute]
INLINE vreal absolute(vreal x) { return abs(x); }
INLINE vint absolute(vint x) { return x < vint{} ? -x : x; }
#if VL_IS_NARROW
INLINE vwide absolute(vwide x) { return x < vwide{} ? -x : x; }
#endif

// [sign]
// 1, 0 or -1; 0 for NaN, as torch has it.
INLINE vreal sign(vreal x) { return select(x > vreal{}, splat(1), select(x < vreal{}, splat(-1), vreal{})); }
INLINE vint sign(vint x) { return (x < vint{}) - (x > vint{}); }
#if VL_IS_NARROW
INLINE vwide sign(vwide x) { return (x < vwide{}) - (x > vwide{}); }
#endif

// [floordiv]
// Rounds to minus infinity, as in Python; a zero divisor gives 0.
#if VL_IS_NARROW
INLINE vint floordiv(vint x, vint y) {
  typedef double vdouble __attribute__((vector_size(VL * 8)));
  // Quotients of 32-bit integers are far enough from the next integer for double precision to truncate right.
  const vdouble quotient = __builtin_convertvector(x, vdouble) / __builtin_convertvector(y, vdouble);
  vint q = __builtin_convertvector(quotient, vint);
  const vint rest = x - q * y;
  q += (rest != vint{}) & ((rest ^ y) < vint{});  // a true comparison is -1
  return select(y == vint{}, vint{}, q);
}
#else
INLINE vint floordiv(vint x, vint y) { vint r; for (int i = 0; i < VL; i++) r[i] = (lane_int)floordiv_int(x[i], y[i]); return r; }
#endif
OUTLINE vreal floordiv(vreal x, vreal y) { vreal r; for (int i = 0; i < VL; i++) r[i] = floordiv((real)x[i], (real)y[i]); return r; }
#if VL_IS_NARROW
INLINE vwide floordiv(vwide x, vwide y) { vwide r; for (int i = 0; i < VL; i++) r[i] = floordiv_int(x[i], y[i]); return r; }
#endif

// [mod]
// Has the sign of the divisor, as in Python; a zero divisor gives 0.
INLINE vint mod(vint x, vint y) { return (x - floordiv(x, y) * y) & (y != vint{}); }
INLINE vreal mod(vreal x, vreal y) { vreal r; for (int i = 0; i < VL; i++) r[i] = mod((real)x[i], (real)y[i]); return r; }
#if VL_IS_NARROW
INLINE vwide mod(vwide x, vwide y) { return (x - floordiv(x, y) * y) & (y != vwide{}); }
#endif

// [bit_length]
INLINE vint bit_length(vint x) { vint r; for (int i = 0; i < VL; i++) r[i] = (lane_int)bit_length_int(x[i]); return r; }
#if VL_IS_NARROW
INLINE vwide bit_length(vwide x) { vwide r; for (int i = 0; i < VL; i++) r[i] = bit_length_int(x[i]); return r; }
#endif

// [rsqrt]
INLINE vreal rsqrt(vreal x) { return splat(1) / sqrt(x); }

// [pow]
OUTLINE vreal pow(vreal x, vreal y) { vreal r; for (int i = 0; i < VL; i++) r[i] = pow((real)x[i], (real)y[i]); return r; }
