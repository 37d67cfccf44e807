// Functions of numbers (MSL 6.2 to 6.6). Computed in float precision; Apple's errors in ulp are not imitated.
#pragma once
#undef INFINITY
#undef NAN
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT FLT_MAX
#define HALF_MAX ((half)65504.0f)
#define HALF_MIN ((half)6.103515625e-05f)
#define HALF_EPSILON ((half)9.765625e-04f)
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_E_F 2.71828182845904523536f

namespace metal {
#define EACH for (int i = 0; i < N; i++)
#define UNARY(name, ...) \
  inline float name(float x) { return __VA_ARGS__; } \
  inline half name(half value) { float x = (float)value; return (half)(__VA_ARGS__); } \
  inline bfloat name(bfloat value) { float x = (float)value; return (bfloat)(__VA_ARGS__); } \
  template <class T, int N> inline vec<T, N> name(vec<T, N> v) { EACH v[i] = name((T)v[i]); return v; }
#define BINARY(name, ...) \
  inline float name(float x, float y) { return __VA_ARGS__; } \
  inline half name(half a, half b) { float x = (float)a, y = (float)b; return (half)(__VA_ARGS__); } \
  inline bfloat name(bfloat a, bfloat b) { float x = (float)a, y = (float)b; return (bfloat)(__VA_ARGS__); } \
  template <class T, int N> inline vec<T, N> name(vec<T, N> v, vec<T, N> w) { EACH v[i] = name((T)v[i], (T)w[i]); return v; }
#define FUNCTIONS \
  UNARY(exp, __builtin_expf(x)) UNARY(exp2, __builtin_exp2f(x)) UNARY(exp10, __builtin_powf(10.f, x)) \
  UNARY(log, __builtin_logf(x)) UNARY(log2, __builtin_log2f(x)) UNARY(log10, __builtin_log10f(x)) \
  UNARY(sin, __builtin_sinf(x)) UNARY(cos, __builtin_cosf(x)) UNARY(tan, __builtin_tanf(x)) \
  UNARY(asin, __builtin_asinf(x)) UNARY(acos, __builtin_acosf(x)) UNARY(atan, __builtin_atanf(x)) \
  UNARY(sinh, __builtin_sinhf(x)) UNARY(cosh, __builtin_coshf(x)) UNARY(tanh, __builtin_tanhf(x)) \
  UNARY(asinh, __builtin_asinhf(x)) UNARY(acosh, __builtin_acoshf(x)) UNARY(atanh, __builtin_atanhf(x)) \
  UNARY(sqrt, __builtin_sqrtf(x)) UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) UNARY(ceil, __builtin_ceilf(x)) \
  UNARY(floor, __builtin_floorf(x)) UNARY(trunc, __builtin_truncf(x)) UNARY(round, __builtin_roundf(x)) \
  UNARY(rint, __builtin_rintf(x)) UNARY(fabs, __builtin_fabsf(x)) UNARY(fract, x - __builtin_floorf(x)) \
  UNARY(sign, x > 0 ? 1.f : x < 0 ? -1.f : 0.f) UNARY(saturate, x < 0 ? 0.f : x > 1 ? 1.f : x) \
  BINARY(pow, __builtin_powf(x, y)) BINARY(powr, __builtin_powf(x, y)) BINARY(fmod, __builtin_fmodf(x, y)) \
  BINARY(atan2, __builtin_atan2f(x, y)) BINARY(fmin, __builtin_fminf(x, y)) BINARY(fmax, __builtin_fmaxf(x, y)) \
  BINARY(copysign, __builtin_copysignf(x, y)) BINARY(divide, x / y) BINARY(step, y < x ? 0.f : 1.f)
FUNCTIONS
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return (half)__builtin_fmaf((float)a, (float)b, (float)c); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return (bfloat)__builtin_fmaf((float)a, (float)b, (float)c); }
template <class T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) { EACH a[i] = fma((T)a[i], (T)b[i], (T)c[i]); return a; }
// Of a number and NaN, min and max give the number (MSL 6.5).
template <class T> inline T min(T a, T b) {
  if constexpr (emulator::length<T> > 0) {
    for (int i = 0; i < emulator::length<T>; i++) a[i] = min((emulator::element<T>)a[i], (emulator::element<T>)b[i]);
    return a;
  } else {
    if constexpr (is_floating_point_v<T>) { if (a != a) return b; }
    return b < a ? b : a;
  }
}
template <class T> inline T max(T a, T b) {
  if constexpr (emulator::length<T> > 0) {
    for (int i = 0; i < emulator::length<T>; i++) a[i] = max((emulator::element<T>)a[i], (emulator::element<T>)b[i]);
    return a;
  } else {
    if constexpr (is_floating_point_v<T>) { if (a != a) return b; }
    return a < b ? b : a;
  }
}
template <class T> inline T min3(T a, T b, T c) { return min(a, min(b, c)); }
template <class T> inline T max3(T a, T b, T c) { return max(a, max(b, c)); }
template <class T> inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T> inline T abs(T x) {
  if constexpr (is_floating_point_v<emulator::element<T>>) return fabs(x);
  else if constexpr (emulator::length<T> > 0) {
    for (int i = 0; i < emulator::length<T>; i++) x[i] = x[i] < 0 ? -x[i] : x[i];
    return x;
  } else return x < 0 ? (T)-x : x;
}
template <class T> inline T mix(T a, T b, T t) { return a + (b - a) * t; }
template <class T> inline T select(T a, T b, bool c) { return c ? b : a; }
template <class T, int N, class B> inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<B, N> c) { EACH a[i] = c[i] ? b[i] : a[i]; return a; }
template <class T, int N> inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++) sum += a[i] * b[i];
  return sum;
}
template <class T, int N> inline T length_squared(vec<T, N> a) { return dot(a, a); }
template <class T, int N> inline T length(vec<T, N> a) { return sqrt(dot(a, a)); }
template <class T, int N> inline T distance(vec<T, N> a, vec<T, N> b) { return length(a - b); }
template <class T, int N> inline vec<T, N> normalize(vec<T, N> a) { return a * rsqrt(dot(a, a)); }
template <class T> inline bool isnan(T x) { return x != x; }
template <class T> inline bool isinf(T x) { return __builtin_isinf((float)x); }
template <class T> inline bool isfinite(T x) { return __builtin_isfinite((float)x); }
template <class T> inline bool signbit(T x) { return __builtin_signbit((float)x); }
inline float sincos(float x, float &cosine) { cosine = __builtin_cosf(x); return __builtin_sinf(x); }
inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
template <class T, int N> inline bool all(vec<T, N> v) { EACH if (!v[i]) return false; return true; }
template <class T, int N> inline bool any(vec<T, N> v) { EACH if (v[i]) return true; return false; }

template <class T> inline T popcount(T x) { return (T)__builtin_popcountll((make_unsigned_t<T>)x); }
template <class T> inline T clz(T x) {
  auto bits = (ulong)(make_unsigned_t<T>)x;
  return bits ? (T)(__builtin_clzll(bits) - (64 - 8 * (int)sizeof(T))) : (T)(8 * sizeof(T));
}
template <class T> inline T ctz(T x) {
  auto bits = (ulong)(make_unsigned_t<T>)x;
  return bits ? (T)__builtin_ctzll(bits) : (T)(8 * sizeof(T));
}
inline uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
inline int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
inline ulong mulhi(ulong a, ulong b) { return (ulong)(((unsigned __int128)a * b) >> 64); }
template <class T> inline T rotate(T a, T b) {
  constexpr T width = sizeof(T) * 8;
  b &= width - 1;
  return b ? (T)((a << b) | ((make_unsigned_t<T>)a >> (width - b))) : a;
}
template <class T> inline T reverse_bits(T x) {
  make_unsigned_t<T> reversed = 0, rest = x;
  for (unsigned i = 0; i < sizeof(T) * 8; i++, rest >>= 1) reversed = (reversed << 1) | (rest & 1);
  return (T)reversed;
}
template <class T> inline T extract_bits(T x, uint offset, uint bits) {
  return bits >= sizeof(T) * 8 ? x >> offset : (x >> offset) & (((T)1 << bits) - 1);
}
#define VARIANT \
  FUNCTIONS \
  template <class T> inline T min(T a, T b) { return metal::min(a, b); } \
  template <class T> inline T max(T a, T b) { return metal::max(a, b); } \
  template <class T> inline T clamp(T x, T low, T high) { return metal::clamp(x, low, high); } \
  template <class T> inline T abs(T x) { return metal::abs(x); } \
  template <class T> inline T fma(T a, T b, T c) { return metal::fma(a, b, c); } \
  inline float sincos(float x, float &cosine) { return metal::sincos(x, cosine); }
namespace precise { VARIANT }
namespace fast { VARIANT }
} // namespace metal
#undef EACH
#undef UNARY
#undef BINARY
#undef FUNCTIONS
#undef VARIANT
