// Vector mathematics on double lanes. Each section is printed only where a kernel needs it.

// [bits]
INLINE vreal bits(vint x) { return (vreal)x; }

// [bits]
INLINE vint bits(vreal x) { return (vint)x; }

// [abs]
INLINE vreal abs(vreal x) { return bits(bits(x) & 0x7fffffffffffffffLL); }

// [copysign]
INLINE vreal copysign(vreal x, vreal s) {
  return bits((bits(x) & 0x7fffffffffffffffLL) | (bits(s) & (long long)0x8000000000000000ULL));
}

// [sqrt]
// The compiler turns such loops into one instruction where the machine has it.
INLINE vreal sqrt(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_sqrt(x[i]); return r; }

// [floor]
INLINE vreal floor(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_floor(x[i]); return r; }

// [ceil]
INLINE vreal ceil(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_ceil(x[i]); return r; }

// [trunc]
INLINE vreal trunc(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_trunc(x[i]); return r; }

// [round]
INLINE vreal round(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_rint(x[i]); return r; }

// [nearest]
INLINE vreal nearest(vreal x, vint& n) { const vreal c = splat(6755399441055744.0); vreal r = x + c; n = bits(r) - bits(c); return r - c; }

// [pow2i]
INLINE vreal pow2i(vint n) { return bits((n + 1023) << 52); }

// [scale2]
INLINE vreal scale2(vreal p, vint n) { vint h = n >> 1; return p * pow2i(h) * pow2i(n - h); }

// [expm1_tail]
INLINE vreal expm1_tail(vreal r) {
  vreal p = splat(1.0 / 6227020800.0);
  p = p * r + splat(1.0 / 479001600.0);
  p = p * r + splat(1.0 / 39916800.0);
  p = p * r + splat(1.0 / 3628800.0);
  p = p * r + splat(1.0 / 362880.0);
  p = p * r + splat(1.0 / 40320.0);
  p = p * r + splat(1.0 / 5040.0);
  p = p * r + splat(1.0 / 720.0);
  p = p * r + splat(1.0 / 120.0);
  p = p * r + splat(1.0 / 24.0);
  p = p * r + splat(1.0 / 6.0);
  return p * r + splat(0.5);
}

// [reduce_ln2]
INLINE vreal reduce_ln2(vreal x, vint& n) {
  vreal k = nearest(x * splat(1.4426950408889634), n);
  return (x - k * splat(6.93147180369123816490e-01)) - k * splat(1.90821492927058770002e-10);
}

// [clamp]
INLINE vreal clamp(vreal x, real lo, real hi) {   // keeps NaN
  x = x > splat(hi) ? splat(hi) : x;
  return x < splat(lo) ? splat(lo) : x;
}

// [exp]
INLINE vreal exp(vreal x) {
  vint n; vreal r = reduce_ln2(clamp(x, -746.0, 710.0), n);
  return scale2(expm1_tail(r) * (r * r) + r + splat(1.0), n);
}

// [exp2]
INLINE vreal exp2(vreal x) {
  vint n; x = clamp(x, -1076.0, 1025.0);
  vreal r = (x - nearest(x, n)) * splat(0.69314718055994531);
  return scale2(expm1_tail(r) * (r * r) + r + splat(1.0), n);
}

// [exp_nonpositive]
template <int DEGREE = 5> INLINE vreal exp_nonpositive(vreal x) {
  vint n; vreal r = reduce_ln2(x, n);
  vreal p = expm1_tail(r) * (r * r) + r + splat(1.0);
  return bits(x < splat(-708.0) ? vint{} : bits(p) + (n << 52));
}

// [expm1]
INLINE vreal expm1(vreal x) {
  vint n; vreal r = reduce_ln2(clamp(x, -40.0, 710.0), n), s = pow2i(n - 1);
  vreal p = expm1_tail(r) * (r * r) + r;
  vreal y = (p * s + (s - splat(.5))) * splat(2.0);
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
INLINE vreal split_log(vreal x, vreal& e) {
  vint tiny = x < splat(2.2250738585072014e-308);
  x = tiny ? x * splat(4503599627370496.0) : x;
  vint b = bits(x) - 0x3fe6a09e667f3bcdLL, k = (b >> 52) - (tiny & 52);
  const vreal c = splat(6755399441055744.0);
  e = bits(k + bits(c)) - c;
  return bits((b & 0xfffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - splat(1.0);
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
  vreal e, f = split_log(x, e), s = f / (f + splat(2.0)), z = s * s;
  vreal p = splat(1.479819860511658591e-01);
  p = p * z + splat(1.531383769920937332e-01);
  p = p * z + splat(1.818357216161805012e-01);
  p = p * z + splat(2.222219843214978396e-01);
  p = p * z + splat(2.857142874366239149e-01);
  p = p * z + splat(3.999999999940941908e-01);
  p = (p * z + splat(6.666666666666735130e-01)) * z;
  vreal h = splat(.5) * f * f;
  vreal y = e * splat(6.93147180369123816490e-01) - ((h - (s * (h + p) + e * splat(1.90821492927058770002e-10))) - f);
  return log_edges(x, y);
}

// [log1p]
INLINE vreal log1p(vreal x) {
  vreal one = splat(1), u = one + x, y = log(u) + (x - (u - one)) / u;
  y = u == one ? x : y;
  return u == splat(real(infinity)) || u == vreal{} ? log(u) : y;
}

// [log2]
OUTLINE vreal log2(vreal x) { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_log2(x[i]); return r; }

// [erf]
OUTLINE vreal erf(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_erf(x[i]); return r; }

// [sin]
OUTLINE vreal sin(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_sin(x[i]); return r; }

// [cos]
OUTLINE vreal cos(vreal x)  { vreal r; for (int i = 0; i < VL; i++) r[i] = __builtin_cos(x[i]); return r; }
// [exp2_nonpositive]
template <int DEGREE = 5> INLINE vreal exp2_nonpositive(vreal x) {
  vint n;
  const vreal r = (x - nearest(x, n)) * splat(0.69314718055994531);
  const vreal p = expm1_tail(r) * (r * r) + r + splat(1.0);
  return bits(x < splat(-1022.0) ? vint{} : bits(p) + (n << 52));
}
