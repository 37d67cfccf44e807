// Scalars, vectors, matrices, limits and type traits (MSL chapter 2).
#pragma once
#include <float.h>
#include <limits.h>

typedef _Float16 half;
typedef __bf16 bfloat;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
#define VECTORS(T, name) \
  typedef T name##2 __attribute__((ext_vector_type(2))); \
  typedef T name##3 __attribute__((ext_vector_type(3))); \
  typedef T name##4 __attribute__((ext_vector_type(4)));
VECTORS(float, float) VECTORS(half, half) VECTORS(bfloat, bfloat) VECTORS(bool, bool)
VECTORS(char, char) VECTORS(uchar, uchar) VECTORS(short, short) VECTORS(ushort, ushort)
VECTORS(int, int) VECTORS(uint, uint) VECTORS(long, long) VECTORS(ulong, ulong)

constexpr half operator""h(long double x) { return (half)x; }

namespace metal {
template <class T, T V> struct integral_constant {
  using value_type = T;
  using type = integral_constant;
  static constexpr T value = V;
  constexpr operator T() const { return V; }
  constexpr T operator()() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <class...> using void_t = void;
template <class T> using remove_cv_t = __remove_cv(T);
template <class T> using remove_reference_t = __remove_reference_t(T);
template <class T> using decay_t = __decay(T);
template <class T> struct remove_cv { using type = remove_cv_t<T>; };
template <class T> struct remove_reference { using type = remove_reference_t<T>; };
template <class T> struct decay { using type = decay_t<T>; };
template <class T> using make_unsigned_t = __make_unsigned(T);
template <class T> using make_signed_t = __make_signed(T);
template <class T> struct make_unsigned { using type = make_unsigned_t<T>; };
template <class T> struct make_signed { using type = make_signed_t<T>; };
#define TRAIT(name, ...) \
  template <class T> struct name : bool_constant<__VA_ARGS__> {}; \
  template <class T> constexpr bool name##_v = name<T>::value;
template <class A, class B> struct is_same : bool_constant<__is_same(A, B)> {};
template <class A, class B> constexpr bool is_same_v = __is_same(A, B);
template <class A, class B> struct is_convertible : bool_constant<__is_convertible_to(A, B)> {};
template <class A, class B> constexpr bool is_convertible_v = __is_convertible_to(A, B);
template <class T, class... A> struct is_constructible : bool_constant<__is_constructible(T, A...)> {};
TRAIT(is_integral, __is_integral(T))
TRAIT(is_floating_point, __is_same(remove_cv_t<T>, float) || __is_same(remove_cv_t<T>, half) || __is_same(remove_cv_t<T>, bfloat))
TRAIT(is_arithmetic, is_integral_v<T> || is_floating_point_v<T>)
TRAIT(is_signed, __is_signed(T))
TRAIT(is_unsigned, __is_unsigned(T))
TRAIT(is_pointer, __is_pointer(T))
TRAIT(is_empty, __is_empty(T))
template <class...> struct conjunction : true_type {};
template <class A, class... B> struct conjunction<A, B...> : bool_constant<A::value && conjunction<B...>::value> {};
template <class...> struct disjunction : false_type {};
template <class A, class... B> struct disjunction<A, B...> : bool_constant<A::value || disjunction<B...>::value> {};
template <class A> struct negation : bool_constant<!A::value> {};

template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));
} // namespace metal

namespace emulator {
using metal::vec;
// Element type and length of a vector; of a scalar, itself and 0.
template <class V> struct shape { static constexpr int length = 0; using element = V; };
template <class T, int N> struct shape<T __attribute__((ext_vector_type(N)))> { static constexpr int length = N; using element = T; };
// Packed vectors have the size and the alignment of their elements (MSL 2.2.3).
template <class T, int N> struct packed;
#define PACKED(N, ...) \
  template <class T> struct packed<T, N> { \
    T __VA_ARGS__; \
    packed() = default; \
    packed(vec<T, N> v) { for (int i = 0; i < N; i++) (*this)[i] = v[i]; } \
    explicit packed(T v) : packed(vec<T, N>(v)) {} \
    operator vec<T, N>() const { vec<T, N> v; for (int i = 0; i < N; i++) v[i] = (*this)[i]; return v; } \
    T &operator[](int i) { return (&x)[i]; } \
    T operator[](int i) const { return (&x)[i]; } \
    ARITHMETIC(+) ARITHMETIC(-) ARITHMETIC(*) ARITHMETIC(/) \
  };
#define ARITHMETIC(op) \
  friend auto operator op(const packed &a, const packed &b) { return to_vector(a) op to_vector(b); } \
  template <class B> friend auto operator op(const packed &a, const B &b) { return to_vector(a) op b; } \
  template <class A> friend auto operator op(const A &a, const packed &b) { return a op to_vector(b); }
template <class T, int N> vec<T, N> to_vector(const packed<T, N> &v) { return v; }
PACKED(2, x, y) PACKED(3, x, y, z) PACKED(4, x, y, z, w)
template <class T, int N> struct shape<packed<T, N>> { static constexpr int length = N; using element = T; };
template <class V> constexpr int length = shape<metal::remove_cv_t<metal::remove_reference_t<V>>>::length;
template <class V> using element = typename shape<metal::remove_cv_t<metal::remove_reference_t<V>>>::element;

// By value everywhere: a value has no address space, a reference has (`src/lint.rs`).
template <class T, class U> constexpr T convert(U value) {
  // clang refuses the direct conversion between half and bfloat, MSL has it.
  if constexpr (sizeof(T) == 2 && sizeof(U) == 2 && metal::is_floating_point_v<T> && metal::is_floating_point_v<U>) return static_cast<T>(static_cast<float>(value));
  else return static_cast<T>(value);
}
template <class T, int N, class A> inline void put(vec<T, N> &to, int &at, A value) {
  if constexpr (length<A> == 0) to[at++] = convert<T>(value);
  else for (int i = 0; i < length<A>; i++) to[at++] = convert<T>((element<A>)value[i]);
}
// The constructors of vectors, which clang's don't have: float4(x), float4(v), float4(v2, x, y), ….
template <class T, int N, class A> inline vec<T, N> make(A value) {
  vec<T, N> to;
  if constexpr (length<A> == 0) {
    for (int i = 0; i < N; i++) to[i] = convert<T>(value);
  } else {
    static_assert(length<A> == N, "a vector from one of another length");
    for (int i = 0; i < N; i++) to[i] = convert<T>((element<A>)value[i]);
  }
  return to;
}
template <class T, int N> inline vec<T, N> make() { return vec<T, N>(0); }
template <class T, int N, class A, class B, class... C> inline vec<T, N> make(A a, B b, C... c) {
  vec<T, N> to;
  int at = 0;
  put<T, N>(to, at, a), put<T, N>(to, at, b), (put<T, N>(to, at, c), ...);
  return to;
}
// What `(T)x` and `static_cast<T>(x)` mean in MSL.
template <class T, class U> inline __attribute__((always_inline)) constexpr auto c_cast(U value) {
  if constexpr (length<T> > 0) return make<element<T>, length<T>>(value);
  else if constexpr (metal::is_floating_point_v<T> && metal::is_floating_point_v<U>) return convert<T>(value);
  else return (T)value;
}
template <class T, class U> inline __attribute__((always_inline)) constexpr T static_cast_(U value) {
  if constexpr (metal::is_floating_point_v<T> && metal::is_floating_point_v<U>) return convert<T>(value);
  else if constexpr (length<T> > 0) return make<element<T>, length<T>>(value);
  else return static_cast<T>(value);
}
} // namespace emulator
#define PACKED_NAMES(T) \
  typedef emulator::packed<T, 2> packed_##T##2; \
  typedef emulator::packed<T, 3> packed_##T##3; \
  typedef emulator::packed<T, 4> packed_##T##4;
PACKED_NAMES(float) PACKED_NAMES(half) PACKED_NAMES(bfloat) PACKED_NAMES(char) PACKED_NAMES(uchar) PACKED_NAMES(short)
PACKED_NAMES(ushort) PACKED_NAMES(int) PACKED_NAMES(uint)

namespace metal {
template <class T> struct vec_elements { static constexpr int value = emulator::length<T> ? emulator::length<T> : 1; };
TRAIT(is_vector, (emulator::length<T> > 0))
TRAIT(is_scalar, (emulator::length<T> == 0 && is_arithmetic_v<T>))
template <class T> struct make_scalar { using type = emulator::element<T>; };
template <class T> using make_scalar_t = typename make_scalar<T>::type;

template <class T> struct _numeric_limits_impl; // MLX specializes it for bfloat
template <class T> struct numeric_limits : _numeric_limits_impl<T> {};
#define INTEGER_LIMITS(T, low, high) \
  template <> struct _numeric_limits_impl<T> { \
    static constexpr bool is_integer = true, is_specialized = true, has_infinity = false, is_signed = (T)-1 < (T)0; \
    static constexpr int digits = sizeof(T) * 8 - is_signed; \
    static constexpr T min() { return low; } \
    static constexpr T lowest() { return low; } \
    static constexpr T max() { return high; } \
    static constexpr T infinity() { return 0; } \
    static constexpr T quiet_NaN() { return 0; } \
  };
INTEGER_LIMITS(bool, 0, 1) INTEGER_LIMITS(char, CHAR_MIN, CHAR_MAX) INTEGER_LIMITS(signed char, -128, 127)
INTEGER_LIMITS(uchar, 0, 255) INTEGER_LIMITS(short, -32768, 32767) INTEGER_LIMITS(ushort, 0, 65535)
INTEGER_LIMITS(int, INT_MIN, INT_MAX) INTEGER_LIMITS(uint, 0, UINT_MAX) INTEGER_LIMITS(long, LONG_MIN, LONG_MAX)
INTEGER_LIMITS(ulong, 0, ULONG_MAX)
#define FLOAT_LIMITS(T, smallest, largest, eps, bits) \
  template <> struct _numeric_limits_impl<T> { \
    static constexpr bool is_integer = false, is_specialized = true, is_signed = true, has_infinity = true; \
    static constexpr int digits = bits; \
    static constexpr T min() { return (T)smallest; } \
    static constexpr T lowest() { return (T)(-largest); } \
    static constexpr T max() { return (T)largest; } \
    static constexpr T epsilon() { return (T)eps; } \
    static constexpr T infinity() { return (T)__builtin_inff(); } \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); } \
  };
FLOAT_LIMITS(float, FLT_MIN, FLT_MAX, FLT_EPSILON, 24)
FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 9.765625e-04f, 11)
FLOAT_LIMITS(bfloat, 1.17549435e-38f, 3.38953139e38f, 7.8125e-03f, 8)

// Matrices are stored by columns: `m[c][r]` (MSL 2.3).
template <class T, int C, int R> struct matrix {
  vec<T, R> columns[C];
  matrix() = default;
  template <class S, class = enable_if_t<is_arithmetic_v<S>>> explicit matrix(S diagonal) {
    for (int i = 0; i < C; i++) {
      columns[i] = vec<T, R>(0);
      if (i < R) columns[i][i] = (T)diagonal;
    }
  }
  template <class... V, class = enable_if_t<sizeof...(V) == C && (C > 1) && ((emulator::length<V> == R) && ...)>>
  matrix(V... v) : columns{v...} {}
  template <class U> explicit matrix(const matrix<U, C, R> &other) {
    for (int i = 0; i < C; i++)
      for (int j = 0; j < R; j++) columns[i][j] = (T)other.columns[i][j];
  }
  vec<T, R> &operator[](int i) { return columns[i]; }
  const vec<T, R> &operator[](int i) const { return columns[i]; }
  friend vec<T, R> operator*(const matrix &m, vec<T, C> v) {
    vec<T, R> sum = m.columns[0] * v[0];
    for (int i = 1; i < C; i++) sum += m.columns[i] * v[i];
    return sum;
  }
  friend vec<T, C> operator*(vec<T, R> v, const matrix &m) {
    vec<T, C> sums;
    for (int i = 0; i < C; i++) {
      sums[i] = 0;
      for (int j = 0; j < R; j++) sums[i] += v[j] * m.columns[i][j];
    }
    return sums;
  }
  friend matrix operator*(T s, matrix m) {
    for (auto &column : m.columns) column *= s;
    return m;
  }
  friend matrix operator*(matrix m, T s) { return s * m; }
  friend matrix operator+(matrix a, const matrix &b) {
    for (int i = 0; i < C; i++) a.columns[i] += b.columns[i];
    return a;
  }
};
#define MATRICES(T) \
  typedef matrix<T, 2, 2> T##2x2; \
  typedef matrix<T, 2, 3> T##2x3; \
  typedef matrix<T, 2, 4> T##2x4; \
  typedef matrix<T, 3, 2> T##3x2; \
  typedef matrix<T, 3, 3> T##3x3; \
  typedef matrix<T, 3, 4> T##3x4; \
  typedef matrix<T, 4, 2> T##4x2; \
  typedef matrix<T, 4, 3> T##4x3; \
  typedef matrix<T, 4, 4> T##4x4;
MATRICES(float) MATRICES(half)

template <class T, size_t N> struct array {
  T elements[N];
  constexpr T &operator[](size_t i) { return elements[i]; }
  constexpr const T &operator[](size_t i) const { return elements[i]; }
  constexpr size_t size() const { return N; }
};

template <class T, class U> inline __attribute__((always_inline)) constexpr T as_type(U value) {
  static_assert(sizeof(T) == sizeof(U), "as_type between types of different size");
  return __builtin_bit_cast(T, value);
}
} // namespace metal
#undef VECTORS
#undef PACKED
#undef ARITHMETIC
#undef PACKED_NAMES
#undef TRAIT
#undef INTEGER_LIMITS
#undef FLOAT_LIMITS
#undef MATRICES
