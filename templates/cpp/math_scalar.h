// Functions of one number. Each section is printed only where a kernel needs it.

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
INLINE real sigmoid(real x) {
  const real e = exp(x < 0 ? x : -x);  // never overflows
  return (x < 0 ? e : real(1)) / (real(1) + e);
}

// [maximum_int]
INLINE int64_t maximum_int(int64_t x, int64_t y) { return x > y ? x : y; }

// [minimum_int]
INLINE int64_t minimum_int(int64_t x, int64_t y) { return x < y ? x : y; }

// [absolute_int]
INLINE int64_t absolute_int(int64_t x) { return x < 0 ? -x : x; }

// [sign_int]
INLINE int64_t sign_int(int64_t x) { return (x > 0) - (x < 0); }

// [floordiv_int]
// Rounds to minus infinity, as in Python; a zero divisor gives 0.
INLINE int64_t floordiv_int(int64_t x, int64_t y) {
  if (y == 0) return 0;
  if (y == -1) return (int64_t)(0 - (uint64_t)x);  // the machine traps on the smallest integer
  const int64_t q = x / y;
  return q - (x % y != 0 && (x < 0) != (y < 0));
}

// [mod_int]
INLINE int64_t mod_int(int64_t x, int64_t y) { return y == 0 ? 0 : x - floordiv_int(x, y) * y; }

// [bit_length_int]
INLINE int64_t bit_length_int(int64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll((uint64_t)(x < 0 ? -x : x)); }

// [maximum]
INLINE real maximum(real x, real y) { return x != x || x > y ? x : y; }

// [minimum]
INLINE real minimum(real x, real y) { return x != x || x < y ? x : y; }

// [absolute]
INLINE real absolute(real x) { return (real)__builtin_fabs(x); }

// [sign]
INLINE real sign(real x) { return real((x > 0) - (x < 0)); }

// [floordiv]
// The floor of the exact quotient, as in Python: 1 // 0.1 is 9 although 1 / 0.1 rounds to 10.
INLINE real floordiv(real x, real y) {
  if (y == 0) return x / y;
  const real r = sizeof(real) == 4 ? __builtin_fmodf(x, y) : __builtin_fmod(x, y);
  const real q = (x - r) / y - real(r != 0 && (r < 0) != (y < 0));
  const real whole = sizeof(real) == 4 ? __builtin_rintf(q) : __builtin_rint(q);
  return whole != 0 ? whole : (real)__builtin_copysign(0.0, x / y);
}

// [mod]
INLINE real mod(real x, real y) { const real r = sizeof(real) == 4 ? __builtin_fmodf(x, y) : __builtin_fmod(x, y); return r != 0 && (r < 0) != (y < 0) ? r + y : r; }

// [rsqrt]
INLINE real rsqrt(real x) { return real(1) / sqrt(x); }

// [pow]
INLINE real pow(real x, real y) { return sizeof(real) == 4 ? __builtin_powf(x, y) : __builtin_pow(x, y); }
