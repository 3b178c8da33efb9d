// Vector mathematics on float lanes. Each section is printed only where a kernel needs it.

// [bits]
INLINE vreal bits(vint x) { return (vreal)x; }

// [bits]
INLINE vint bits(vreal x) { return (vint)x; }

// [abs]
INLINE vreal abs(vreal x) { return bits(bits(x) & 0x7fffffff); }

// [copysign]
INLINE vreal copysign(vreal x, vreal s) { return bits((bits(x) & 0x7fffffff) | (bits(s) & (int)0x80000000)); }

// [sqrt]
// The compiler turns such loops into one instruction where the machine has it.
INLINE vreal sqrt(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_sqrtf(x[i]); return r; }

// [floor]
INLINE vreal floor(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_floorf(x[i]); return r; }

// [ceil]
INLINE vreal ceil(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_ceilf(x[i]); return r; }

// [trunc]
INLINE vreal trunc(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_truncf(x[i]); return r; }

// [round]
INLINE vreal round(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_rintf(x[i]); return r; }   // halves to even, as torch.round

// [nearest]
// Integer nearest to x, both as a number and as an integer (|x| < 2^21, resp. 2^51).
INLINE vreal nearest(vreal x, vint& n) { const vreal c = splat(12582912.f); vreal r = x + c; n = bits(r) - bits(c); return r - c; }

// [pow2i]
INLINE vreal pow2i(vint n) { return bits((n + 127) << 23); }

// [scale2]
INLINE vreal scale2(vreal p, vint n) { vint h = n >> 1; return p * pow2i(h) * pow2i(n - h); }

// [expm1_tail]
// (e^r - 1 - r) / r^2 for |r| <= ln(2)/2
INLINE vreal expm1_tail(vreal r) {
  vreal p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  return p * r + splat(5.0000001201e-1f);
}

// [reduce_ln2]
// x = n ln2 + r
INLINE vreal reduce_ln2(vreal x, vint& n) {
  vreal k = nearest(x * splat(1.44269504f), n);
  return (x - k * splat(0.693359375f)) - k * splat(-2.12194440e-4f);
}

// [clamp]
INLINE vreal clamp(vreal x, real lo, real hi) {   // keeps NaN
  x = x > splat(hi) ? splat(hi) : x;
  return x < splat(lo) ? splat(lo) : x;
}

// [exp]
INLINE vreal exp(vreal x) {
  vint n; vreal r = reduce_ln2(clamp(x, -104.f, 89.f), n);
  return scale2(expm1_tail(r) * (r * r) + r + splat(1.f), n);
}

// [exp2]
INLINE vreal exp2(vreal x) {
  vint n; x = clamp(x, -151.f, 129.f);
  vreal r = (x - nearest(x, n)) * splat(0.693147181f);
  return scale2(expm1_tail(r) * (r * r) + r + splat(1.f), n);
}

// [exp_nonpositive]
// exp for arguments that are never positive (s - max s): exactly 0 below the normal range, in
// particular at -inf, exactly 1 at 0. This is the exponential of the inner loop: 1.3 ulp near 0, 3.5 ulp at -20
// (16 without fused multiply-add), where a weight counts 2e-9 of the largest.
template <int DEGREE = 5> INLINE vreal exp_nonpositive(vreal x) {
  const vreal log2e = splat(1.44269504f), c = splat(12582912.f);
  vreal r = x * log2e + c, f = x * log2e - (r - c), p;
  if constexpr (DEGREE >= 5) {
    p = splat(1.32647273e-3f);
    p = p * f + splat(9.67151299e-3f);
    p = p * f + splat(5.55073358e-2f);
    p = p * f + splat(2.40222424e-1f);
    p = p * f + splat(6.93147004e-1f);
  } else {                                   // enough when the weights are rounded to 8 or 11 bits
    p = splat(5.50089292e-2f);
    p = p * f + splat(2.42210969e-1f);
    p = p * f + splat(6.93282902e-1f);
  }
  p = p * f + splat(1.f);
  return bits(x < splat(-87.f) ? vint{} : bits(p) + (bits(r) << 23));
}

// [expm1]
INLINE vreal expm1(vreal x) {
  vint n; vreal r = reduce_ln2(clamp(x, -20.f, 89.f), n), s = pow2i(n - 1);
  vreal p = expm1_tail(r) * (r * r) + r;
  vreal y = (p * s + (s - splat(.5f))) * splat(2.f);
  y = n == 0 ? p : y;
  return x == vreal{} ? x : y;
}

// [sigmoid]
INLINE vreal sigmoid(vreal x) {
  vreal e = exp(-abs(x)), one = splat(1);
  vreal top = x < vreal{} ? e : one;
  return top / (one + e);
}

// [tanh]
INLINE vreal tanh(vreal x) {
  constexpr bool single = sizeof(real) == 4;
  vreal t = expm1(splat(2) * clamp(abs(x), real(0), single ? 10.f : 20.f));
  return copysign(t / (t + splat(2)), x);
}

// [split_log]
// x = m 2^e with sqrt(1/2) <= m < sqrt(2), returns m - 1; x positive and finite.
INLINE vreal split_log(vreal x, vreal& e) {
  vint tiny = x < splat(1.17549435e-38f);
  x = tiny ? x * splat(8388608.f) : x;
  vint b = bits(x) - 0x3f3504f3, k = (b >> 23) - (tiny & 23);
  e = __builtin_convertvector(k, vreal);
  return bits((b & 0x7fffff) + 0x3f3504f3) - splat(1.f);
}

// [log_tail]
INLINE vreal log_tail(vreal f, vreal z) {              // log(1 + f) - f + f^2/2, z = f^2
  vreal p = splat(7.0376836292e-2f);
  p = p * f + splat(-1.1514610310e-1f);
  p = p * f + splat(1.1676998740e-1f);
  p = p * f + splat(-1.2420140846e-1f);
  p = p * f + splat(1.4249322787e-1f);
  p = p * f + splat(-1.6668057665e-1f);
  p = p * f + splat(2.0000714765e-1f);
  p = p * f + splat(-2.4999993993e-1f);
  return (p * f + splat(3.3333331174e-1f)) * f * z;
}

// [log_edges]
// Right values at 0, negative numbers, +inf and NaN.
INLINE vreal log_edges(vreal x, vreal y) {
  const real inf = real(infinity);
  y = x == splat(inf) ? x : y;
  y = x == vreal{} ? splat(-inf) : y;
  y = x < vreal{} ? splat(real(__builtin_nan(""))) : y;
  return x != x ? x : y;
}

// [log]
INLINE vreal log(vreal x) {
  vreal e, f = split_log(x, e), z = f * f;
  vreal y = log_tail(f, z) + e * splat(-2.12194440e-4f) - splat(.5f) * z;
  return log_edges(x, f + y + e * splat(0.693359375f));
}

// [log2]
INLINE vreal log2(vreal x) {
  const vreal c = splat(0.44269504088896340736f);           // log2(e) - 1
  vreal e, f = split_log(x, e), z = f * f, y = log_tail(f, z) - splat(.5f) * z;
  return log_edges(x, (((y * c + f * c) + y) + f) + e);
}

// [log1p]
INLINE vreal log1p(vreal x) {
  vreal one = splat(1), u = one + x, y = log(u) + (x - (u - one)) / u;
  y = u == one ? x : y;
  return u == splat(real(infinity)) || u == vreal{} ? log(u) : y;
}

// [any]
INLINE bool any(vint mask) {
  lane_int r = 0;
  for (int i = 0; i < VL; i++) r |= mask[i];
  return r != 0;
}

// [sin_far]
OUTLINE vreal sin_far(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_sinf(x[i]); return r; }

// [cos_far]
OUTLINE vreal cos_far(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_cosf(x[i]); return r; }

// [sincos_near]
INLINE vreal sincos_near(vreal x, int shift) {                      // sin(x + shift pi/2), |x| <= 8192
  vint n; vreal k = nearest(x * splat(0.636619772f), n);
#ifdef __FMA__
  vreal r = x - k * splat(1.57079637f);
  r = r - k * splat(-4.37113900e-8f);
  r = r - k * splat(-1.71512449e-15f);
#else
  vreal r = x - k * splat(1.5703125f);
  r = r - k * splat(4.837512969970703125e-4f);
  r = r - k * splat(7.549789948768648e-8f);
#endif
  vreal z = r * r;
  vreal s = splat(-1.9515295891e-4f);
  s = s * z + splat(8.3321608736e-3f);
  s = (s * z + splat(-1.6666654611e-1f)) * z * r + r;
  vreal c = splat(2.443315711809948e-5f);
  c = c * z + splat(-1.388731625493765e-3f);
  c = (c * z + splat(4.166664568298827e-2f)) * z * z - splat(.5f) * z + splat(1.f);
  n += shift;
  vreal y = (n & 1) != 0 ? c : s;
  y = bits(bits(y) ^ ((n & 2) << 30));
  return y;
}

// [erf]
INLINE vreal erf(vreal x) {
  vreal t = clamp(abs(x), 0.f, 5.f), s = x * x, r, u;
  r = splat(-1.72853470e-5f) * t + splat(3.83197126e-4f);
  u = splat(-3.88396438e-3f) * t + splat(2.42546219e-2f);
  r = r * (t * t) + u;
  r = r * t + splat(-1.06777877e-1f);
  r = r * t + splat(-6.34846687e-1f);
  r = r * t + splat(-1.28717512e-1f);
  r = r * t - t;
  vreal far = copysign(splat(1.f) - exp(r), x);
  vreal p = splat(-5.96761703e-4f);
  p = p * s + splat(4.99119423e-3f);
  p = p * s + splat(-2.67681349e-2f);
  p = p * s + splat(1.12819925e-1f);
  p = p * s + splat(-3.76125336e-1f);
  p = p * s + splat(1.28379166e-1f);
  vreal near = p * x + x;
  return abs(x) > splat(0.927734375f) ? far : near;
}

// [sin]
INLINE vreal sin(vreal x) {
  if (__builtin_expect(any(!(abs(x) <= splat(8192.f))), 0)) return sin_far(x);
  vreal y = sincos_near(x, 0);
  return x == vreal{} ? x : y;
}

// [cos]
INLINE vreal cos(vreal x) {
  if (__builtin_expect(any(!(abs(x) <= splat(8192.f))), 0)) return cos_far(x);
  return sincos_near(x, 1);
}
// [exp2_nonpositive]
// As exp_nonpositive, for powers of two.
template <int DEGREE = 5> INLINE vreal exp2_nonpositive(vreal x) {
  const vreal c = splat(12582912.f), r = x + c, f = x - (r - c);
  vreal p;
  if constexpr (DEGREE >= 5) {
    p = splat(1.32647273e-3f);
    p = p * f + splat(9.67151299e-3f);
    p = p * f + splat(5.55073358e-2f);
    p = p * f + splat(2.40222424e-1f);
    p = p * f + splat(6.93147004e-1f);
  } else {
    p = splat(5.50089292e-2f);
    p = p * f + splat(2.42210969e-1f);
    p = p * f + splat(6.93282902e-1f);
  }
  p = p * f + splat(1.f);
  return bits(x < splat(-126.f) ? vint{} : bits(p) + (bits(r) << 23));
}
